//! Functions of a collection that exists: added, altered, dropped.
//!
//! What is stored stays as it is. A function that is added fills its output from then on; one that is
//! dropped leaves an ordinary field, which clients fill. One that is altered must go on making the
//! vectors that it made: rows would otherwise be compared with questions of another model.

use elanus_proto::common::Status;
use elanus_proto::milvus::*;
use elanus_proto::schema::FunctionSchema;
use elanus_storage::CollectionChange;
use elanus_storage::schema::{FunctionDef, Schema};

use crate::convert::function::ModelFunction;
use crate::convert::schema;
use crate::node::{Context, Node};
use crate::status::{Failure, success};

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
            Ok(Some(added.name.clone()))
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
            if !before.makes_the_vectors_of(&after) {
                return Err(Failure::unimplemented(format!(
                    "function {name}: with these parameters it would make other vectors than those \
                     that are stored, and embedding stored rows anew is not supported yet: only \
                     search_prompt, credential, url, endpoint, user and max_client_batch_size can \
                     be altered; for another model make a new collection and insert the texts again"
                )));
            }
            let id = old.id;
            schema.functions[at] = FunctionDef { id, ..altered.clone() };
            Ok(Some(name.clone()))
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
            Ok(None)
        })
        .await
    }

    /// Changes the functions of a collection; `change` names the one whose model is asked whether
    /// it fits. It is made twice: to ask, which may take a provider's while, and then, with nobody
    /// else changing the list, to what the functions are by that time.
    async fn change_functions(
        &self,
        ctx: &Context,
        name: &str,
        id: i64,
        change: impl Fn(&mut Schema) -> Result<Option<String>, Failure>,
    ) -> Result<Status, Failure> {
        let changed = || -> Result<_, Failure> {
            let info = self.collection_to_alter(ctx, name, id)?;
            let mut schema = info.schema.as_ref().clone();
            let changed = change(&mut schema)?;
            schema::check_functions_of(&mut schema, &self.limits)?;
            Ok((info, schema, changed))
        };
        let (asked, schema, to_ask) = changed()?;
        if let Some(function) = schema.functions.iter().find(|f| Some(&f.name) == to_ask.as_ref()) {
            let model = ModelFunction::of(function, &schema)?;
            model.check(&schema, self.engines()).await?;
        }
        // The list is replaced as a whole: two changes at a time would lose one.
        let _alone = self.plan.function_changes.lock().await;
        let (info, schema, _) = changed()?;
        // Fields are only ever added, but under the name may be another collection by now.
        if info.id != asked.id {
            return Err(Failure::invalid(format!(
                "collection {name} was replaced by another meanwhile"
            )));
        }
        let change = CollectionChange::Functions(schema.functions);
        self.engine.alter_collection(&info.db, &info.name, change).await?;
        Ok(success())
    }
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
