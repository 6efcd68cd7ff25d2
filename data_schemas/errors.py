"""The errors that users see. Each class has one meaning, and its kind decides the exit code of a command or a stage.

AlignloopError
  UserError          exit code 2: the user has to change something; one line says what was found and what to do
    ConfigError        a key, a value or a combination of them in a recipe, a config file or a command line
    DataError          the content of a file: a row, a record, a model folder that is damaged or of another kind
      UnknownColumns     rows without the columns of their kind
    BusyError          another process holds the folder
  StageError         exit code 1: the stage ran and failed; its input was accepted
    RunAgain           the stage stopped on purpose, and continues when the same command is run again
  WaitingForPeople   exit code 3: nothing failed; the step goes on when people have sent their files back
"""


class AlignloopError(ValueError):
    """Base of all errors that are reported in one line and without a traceback."""


class UserError(AlignloopError):
    """A user's mistake. Ends a command or a stage with exit code 2."""


class ConfigError(UserError):
    """A wrong key, value or combination in a recipe, a config file or a command line."""


class DataError(UserError):
    """A file or folder whose content is not what it has to be: rows, a record, a model."""


class UnknownColumns(DataError):
    """No row of a file has the columns of its kind: it is another kind of file, or its columns have other names."""


class BusyError(UserError):
    """Another process writes the folder now."""


class StageError(AlignloopError):
    """A stage ran and failed, as when the loss is not finite. Ends it with exit code 1."""


class RunAgain(StageError):
    """The stage stopped on purpose and continues when the same command is run again."""


class WaitingForPeople(AlignloopError):
    """The step needs labels from people, and goes on when their files are there. Ends it with exit code 3."""


class WrongValue(ValueError):
    """Why a row is invalid. Whoever reads the file turns it into a DataError with the file's name and the line.

    `field` is empty where the place in the row is known only to the caller.
    """

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}" if field else f"{found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


class SetAside(WrongValue):
    """Why a valid row is not used: it says so itself, as by `weight: 0`. It is set aside whatever `on_bad_row` is."""
