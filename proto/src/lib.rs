//! The Milvus wire contract: messages, service and error codes.
//!
//! One module for each protobuf package. The `.proto` files in `proto/` are written by this
//! project from the facts of the wire format (names, numbers, types); the suite in `tests/python`
//! compares them with the descriptors that the installed pymilvus carries.
//!
//! `bytes` fields are [`bytes::Bytes`]: vectors and placeholder groups are slices of the buffer a
//! request arrived in. The client stub is made from a channel ([`MilvusServiceClient::new`]): a
//! generated `connect` constructor would collide with the rpc of that name.
//!
//! This crate knows the format only. What a request means is the server's business.
//!
//! [`MilvusServiceClient::new`]: milvus::milvus_service_client::MilvusServiceClient::new
#![forbid(unsafe_code)]

pub mod codes;
mod floats;

/// The descriptors of all packages (a serialized `google.protobuf.FileDescriptorSet`, imports
/// included, without comments), for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! package {
    ($(#[$attribute:meta])* $name:ident $(, $item:item)?) => {
        $(#[$attribute])*
        #[expect(
            missing_docs,
            reason = "generated; what matters to a reader is said in the .proto files"
        )]
        pub mod $name {
            $($item)?
            include!(concat!(env!("OUT_DIR"), "/milvus.proto.", stringify!($name), ".rs"));
        }
    };
}

package! {
    /// Status, parameters, query vectors, and the enumerations of states.
    common
}
package! {
    /// Schemas, columns and search results.
    schema, pub use crate::floats::FloatArray;
}
package! {
    /// The service, its requests and its answers.
    #[expect(clippy::allow_attributes, reason = "generated service stubs carry them")]
    milvus
}
package! {
    /// Messages of Milvus' own log; only `MsgPosition` appears in answers.
    msg
}
package! {
    /// Resource groups.
    rg
}
package! {
    /// Index internals for a visualisation tool.
    feder
}
