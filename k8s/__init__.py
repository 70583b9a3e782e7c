"""The Kubernetes manifests (base, components, overlays, images, values) and, in `checks`, what holds them to account."""
