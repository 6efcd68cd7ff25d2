"""The demo's world: facts, a corpus and people's answers made by seeded code, and a gold score."""
