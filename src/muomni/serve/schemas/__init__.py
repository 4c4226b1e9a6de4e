"""What each route reads, and what it answers, as the official client has it."""
