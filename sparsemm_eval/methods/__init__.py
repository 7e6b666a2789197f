"""KV-compression methods: which entries of a prompt every KV head keeps."""
