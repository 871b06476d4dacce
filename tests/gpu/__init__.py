"""What has to hold on a card: `make test-gpu`. Without a card CPU tensors take the card's path."""
