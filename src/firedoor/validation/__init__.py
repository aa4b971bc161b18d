"""Does the audit find what is false, and leave alone what is honest? Planted failures and honest models, and what it says of them."""
