//! Which KV block holds which tokens: pool, block tables, prefix index.
