"""The core: pickling, the payload, references and what is refused, handles, scopes, and errors."""
