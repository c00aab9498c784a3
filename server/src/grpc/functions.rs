//! Functions of a collection that exists: added, altered, dropped.
//!
//! A function that is added fills its output from then on, and what is stored stays as it is; one
//! that is dropped leaves an ordinary field, which clients fill. One that is altered so that it makes
//! other vectors is as before until those of all rows are made anew ([`crate::reembed`]): rows
//! would otherwise be compared with questions of another model.

use elanus_proto::common::Status;
use elanus_proto::milvus::*;
use elanus_proto::schema::FunctionSchema;
use elanus_storage::schema::{FunctionDef, Schema};
use elanus_storage::{CollectionChange, Error};

use crate::convert::function::ModelFunction;
use crate::convert::schema;
use crate::node::{Context, Node};
use crate::status::{Failure, success};

/// How often a change of functions is made again because they are others by then.
const CHANGES_TRIED: usize = 10;

impl Node {
    pub(super) async fn add_collection_function(
        &self,
        ctx: &Context,
        request: AddCollectionFunctionRequest,
    ) -> Result<Status, Failure> {
        let added = definition(request.function_schema)?;
        let (collection, id) = (&request.collection_name, request.collection_id);
        self.change_functions(ctx, collection, id, |schema| {
            schema.functions.push(added.clone());
            Ok(Change { function: added.name.clone(), check: true, anew: false })
        })
        .await
    }

    pub(super) async fn alter_collection_function(
        &self,
        ctx: &Context,
        request: AlterCollectionFunctionRequest,
    ) -> Result<Status, Failure> {
        let altered = definition(request.function_schema)?;
        let name = request.function_name;
        if altered.name != name {
            return Err(Failure::invalid(format!(
                "invalid function config, name not match: function {name} cannot become {}",
                altered.name
            )));
        }
        let (collection, id) = (&request.collection_name, request.collection_id);
        self.change_functions(ctx, collection, id, |schema| {
            let at = position(schema, &name)?;
            let old = &schema.functions[at];
            if (old.kind, &old.inputs, &old.outputs)
                != (altered.kind, &altered.inputs, &altered.outputs)
            {
                return Err(Failure::invalid(format!(
                    "function {name}: type, input fields and output fields cannot be altered, only \
                     parameters can"
                )));
            }
            let (before, after) =
                (ModelFunction::of(old, schema)?, ModelFunction::of(&altered, schema)?);
            let id = old.id;
            schema.functions[at] = FunctionDef { id, ..altered.clone() };
            let anew = !before.makes_the_vectors_of(&after);
            Ok(Change { function: name.clone(), check: true, anew })
        })
        .await
    }

    pub(super) async fn drop_collection_function(
        &self,
        ctx: &Context,
        request: DropCollectionFunctionRequest,
    ) -> Result<Status, Failure> {
        let (collection, id) = (&request.collection_name, request.collection_id);
        self.drop_function(ctx, collection, id, &request.function_name).await
    }

    /// Drops a function and keeps the field that it filled.
    pub(super) async fn drop_function(
        &self,
        ctx: &Context,
        collection: &str,
        id: i64,
        name: &str,
    ) -> Result<Status, Failure> {
        self.change_functions(ctx, collection, id, |schema| {
            schema.functions.remove(position(schema, name)?);
            Ok(Change { function: name.to_owned(), check: false, anew: false })
        })
        .await
    }

    /// Changes the functions of a collection. `change` is made twice: to ask whether the model
    /// fits, which may take a provider's while, and then, with nobody else changing the list, to
    /// what the functions are by that time.
    async fn change_functions(
        &self,
        ctx: &Context,
        name: &str,
        id: i64,
        change: impl Fn(&mut Schema) -> Result<Change, Failure>,
    ) -> Result<Status, Failure> {
        let changed = || -> Result<_, Failure> {
            let info = self.collection_to_alter(ctx, name, id)?;
            let mut schema = info.schema.as_ref().clone();
            let changed = change(&mut schema)?;
            schema::check_functions_of(&mut schema, &self.limits)?;
            Ok((info, schema, changed))
        };
        let (asked, schema, Change { function, check, .. }) = changed()?;
        if let Some(function) = schema.functions.iter().find(|f| check && f.name == function) {
            let model = ModelFunction::of(function, &schema)?;
            model.check(&schema, self.engines()).await?;
        }
        // The lists are replaced as a whole, if nobody else changed them meanwhile: another caller, or
        // vectors that were made anew and are in use now.
        for _ in 0..CHANGES_TRIED {
            let (info, schema, changed) = changed()?;
            // Fields are only ever added, but under the name may be another collection by now.
            if info.id != asked.id {
                return Err(Failure::invalid(format!(
                    "collection {name} was replaced by another meanwhile"
                )));
            }
            // What was pending for this function is given up: it is now what was asked for last.
            let pending = info.schema.pending.iter().map(|refill| &refill.function);
            let mut pending: Vec<_> =
                pending.filter(|f| f.name != changed.function).cloned().collect();
            let mut now = schema.functions;
            if changed.anew {
                pending.extend(now.iter().find(|f| f.name == changed.function).cloned());
                now.clone_from(&info.schema.functions);
            }
            let of = info.schema.version;
            let change = CollectionChange::Functions { of, now, pending };
            match self.engine.alter_collection(&info.db, &info.name, change).await {
                Err(Error::SchemaChanged) => continue,
                outcome => outcome?,
            };
            if changed.anew {
                tracing::info!(
                    collection = info.name,
                    function = changed.function,
                    "stored texts are to be embedded anew"
                );
            }
            self.reembedding.wake();
            return Ok(success());
        }
        Err(Error::SchemaChanged.into())
    }
}

/// What a change of functions does.
struct Change {
    /// The one that is changed.
    function: String,
    /// Whether its model is asked.
    check: bool,
    /// Whether it would make other vectors than those that are stored.
    anew: bool,
}

fn definition(wire: Option<FunctionSchema>) -> Result<FunctionDef, Failure> {
    let wire = wire.ok_or_else(|| Failure::invalid("the request has no function"))?;
    schema::function(wire)
}

fn position(schema: &Schema, name: &str) -> Result<usize, Failure> {
    let found = schema.functions.iter().position(|function| function.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = schema.functions.iter().map(|function| &*function.name).collect();
        Failure::invalid(format!("function not found: {name}, there are [{}]", names.join(", ")))
    })
}
