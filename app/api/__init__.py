"""The public HTTP interface, in OpenAI's wire format."""
