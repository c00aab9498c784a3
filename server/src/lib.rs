//! A Milvus-compatible vector database node with its models inside.
