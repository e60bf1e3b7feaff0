"""OpenAI's wire format as msgspec structs: field names and shapes are the protocol's, no behaviour."""
