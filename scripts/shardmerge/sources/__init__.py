"""Where models come from: folders, adapters, the Hub, and the lock that pins them."""
