"""The small trained model that ships with the package: network, weights, card and sample images."""
