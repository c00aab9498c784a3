//! The node that speaks Milvus: it binds requests, plans them, and composes storage, search and
//! models into answers.
//!
//! A request walks through [`grpc`] (which rpc, whose database, what code), [`convert`] (wire to
//! Arrow and back), [`plan`] (functions, search, fusion) and ends in the storage engine or the
//! model store. Nothing here knows segments, files or tensors; [`status`] alone knows codes.

#![forbid(unsafe_code)]

mod bodies;
pub mod config;
pub mod convert;
pub mod engines;
pub mod grpc;
pub mod http;
pub mod limits;
pub mod node;
pub mod plan;
pub mod pull;
pub mod reembed;
pub mod serve;
pub mod status;
pub mod telemetry;
