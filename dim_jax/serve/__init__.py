"""Pictures for many: an engine that paints requests together (`engine`), and OpenAI's image API over it (`server`)."""
