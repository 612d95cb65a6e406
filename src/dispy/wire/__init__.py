"""How two dispy processes talk: frames, handshake, session (pure), and links, discovery, blobs (I/O)."""
