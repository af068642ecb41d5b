"""The tests, in rooms like the code's; tests/support has every fake, maker and server."""
