"""Text files: documents by paragraph or by line, prompts by line."""

import gzip

import pytest

from data_schemas.column_checks import check_columns
from data_schemas.errors import DataError
from data_schemas.reading import read_documents, read_prompts
from data_schemas.rows import for_template
from data_schemas.sources import Source
from tests.data_schemas.raw_rows import user


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.txt.gz"])
def test_a_text_file_of_prompts_has_one_a_line_also_where_blank_lines_make_paragraphs_of_documents(tmp_path, name):
    path, content = tmp_path / name, b"What is 2+2?\nName a dog.\r\n\n  \nWho?\n"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    prompts = read_prompts(path).rows
    assert [for_template(prompt.prompt) for prompt in prompts] == [
        [user("What is 2+2?")],
        [user("Name a dog.")],
        [user("Who?")],
    ]
    assert [document.text for document in read_documents(path).rows] == ["What is 2+2?\nName a dog.", "Who?"]
    check_columns(Source.of(str(path)), "prompts")
    with pytest.raises(DataError, match="has the columns text; expected messages"):
        check_columns(Source.of(str(path)), "instructions")


def test_a_text_file_whose_documents_columns_calls_prompts_has_one_a_paragraph(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Add these:\n2\n3\n\nWho?\n")
    source = {"path": str(path), "columns": {"prompt": "text"}}
    assert [prompt.prompt[0].content for prompt in read_prompts(source).rows] == ["Add these:\n2\n3", "Who?"]
    check_columns(Source.of(source), "prompts")
