"""ComfyUI's folders; a test that needs files there replaces the functions of `nodes.host`."""
