"""Who may reach the server and how much they may send: in front of both the page and the API."""
