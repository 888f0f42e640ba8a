"""What was really spent and what really ran: bills, metrics, drift, findings."""
