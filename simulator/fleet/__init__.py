"""A fleet that lives: gateway, controllers, boots, spot losses, failures, and the ledger of what was held."""
