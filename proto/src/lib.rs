//! The Milvus wire contract: messages, service and error codes.
