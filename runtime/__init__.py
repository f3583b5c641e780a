"""What runs a bundle: prompt in, frames out, with numpy and one engine."""
