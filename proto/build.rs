//! Compiles `proto/*.proto` in process: no `protoc` is needed to build the node.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet};
use protox::Compiler;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(["milvus.proto"])?;

    // What reflection serves: the messages as declared, without our comments.
    compiler.include_source_info(false);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    compiler.include_source_info(true);
    let mut files = FileDescriptorSet::decode(&*compiler.encode_file_descriptor_set())?;
    drop_deprecations(&mut files);
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".milvus.proto.schema.FloatArray", "crate::floats::FloatArray")
        .generate_default_stubs(true)
        // A generated `connect` constructor would collide with the rpc Connect.
        .build_transport(false)
        .compile_fds(files)?;
    Ok(())
}

/// Milvus deprecates names that its clients still depend on (`Status.error_code`). A server must
/// go on filling them, so a compiler warning at each use would say nothing.
fn drop_deprecations(files: &mut FileDescriptorSet) {
    for file in &mut files.file {
        file.message_type.iter_mut().for_each(drop_deprecations_of_message);
        for value in file.enum_type.iter_mut().flat_map(|e| &mut e.value) {
            value.options.iter_mut().for_each(|options| options.deprecated = None);
        }
        for method in file.service.iter_mut().flat_map(|s| &mut s.method) {
            method.options.iter_mut().for_each(|options| options.deprecated = None);
        }
    }
}

fn drop_deprecations_of_message(message: &mut DescriptorProto) {
    message.options.iter_mut().for_each(|options| options.deprecated = None);
    for field in &mut message.field {
        field.options.iter_mut().for_each(|options| options.deprecated = None);
    }
    message.nested_type.iter_mut().for_each(drop_deprecations_of_message);
}
