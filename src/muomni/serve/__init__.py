"""A finished run behind HTTP: the API that OpenAI's clients speak, and a page."""
