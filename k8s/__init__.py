"""Manifests for Kubernetes (base, components, overlays, images, values), and in `checks` what holds them to account."""
