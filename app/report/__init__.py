"""Cost reports: built from a plan, the bill and what really ran; rendered, sent and scheduled."""
