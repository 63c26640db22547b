//! Model architectures over the op vocabulary, and weight loading.
