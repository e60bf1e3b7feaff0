"""What a chat model's text means beside plain content: reasoning and tool calls, read as the text comes."""
