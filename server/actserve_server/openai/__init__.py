"""OpenAI's HTTP API, by vLLM's own serving classes in front of our engine. Imported only where it
is served, since vLLM takes seconds to import. See docs/design/openai_door.md."""
