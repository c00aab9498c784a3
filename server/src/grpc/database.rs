//! Databases. Here a request's `db_name` is the database spoken of, not the one spoken in.

use elanus_proto::codes::Code;
use elanus_proto::common::Status;
use elanus_proto::milvus::*;

use crate::convert::{key_values, names, pairs};
use crate::node::{Context, DEFAULT_DATABASE, Node};
use crate::status::{Failure, success};

impl Node {
    pub(super) async fn create_database(
        &self,
        _ctx: &Context,
        request: CreateDatabaseRequest,
    ) -> Result<Status, Failure> {
        let name = &request.db_name;
        names::check(names::Kind::Database, name, &self.limits)?;
        let databases = self.catalog().databases().count();
        if databases >= self.limits.databases && self.catalog().database(name).is_none() {
            return Err(Failure::new(
                Code::DatabaseNumLimitExceeded,
                format!("{}[limit={}]", Code::DatabaseNumLimitExceeded, self.limits.databases),
            ));
        }
        self.engine.create_database(name, pairs(request.properties)).await?;
        Ok(success())
    }

    pub(super) async fn drop_database(
        &self,
        _ctx: &Context,
        request: DropDatabaseRequest,
    ) -> Result<Status, Failure> {
        if request.db_name == DEFAULT_DATABASE {
            return Err(Failure::invalid("can not drop default database"));
        }
        match self.engine.drop_database(&request.db_name).await {
            // Dropping what is not there is done already.
            Ok(()) | Err(elanus_storage::Error::DatabaseNotFound(_)) => Ok(success()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn alter_database(
        &self,
        _ctx: &Context,
        request: AlterDatabaseRequest,
    ) -> Result<Status, Failure> {
        let set = pairs(request.properties);
        if set.is_empty() && request.delete_keys.is_empty() {
            return Err(Failure::invalid("The database properties and delete keys are both empty"));
        }
        if !set.is_empty() && !request.delete_keys.is_empty() {
            return Err(Failure::invalid(
                "can not provide properties and deletekeys at the same time",
            ));
        }
        self.engine.alter_database(&request.db_name, set, request.delete_keys).await?;
        Ok(success())
    }

    pub(super) async fn list_databases(
        &self,
        _ctx: &Context,
        _request: ListDatabasesRequest,
    ) -> Result<ListDatabasesResponse, Failure> {
        let mut response = ListDatabasesResponse::default();
        for database in self.catalog().databases() {
            response.db_names.push(database.name.clone());
            response.created_timestamp.push(database.created.0);
            response.db_ids.push(database.id);
        }
        Ok(response)
    }

    pub(super) async fn describe_database(
        &self,
        _ctx: &Context,
        request: DescribeDatabaseRequest,
    ) -> Result<DescribeDatabaseResponse, Failure> {
        let name =
            if request.db_name.is_empty() { DEFAULT_DATABASE } else { request.db_name.as_str() };
        let catalog = self.catalog();
        let database = catalog.database(name).ok_or_else(|| Failure::database_not_found(name))?;
        Ok(DescribeDatabaseResponse {
            status: None,
            db_name: database.name.clone(),
            db_id: database.id,
            created_timestamp: database.created.0,
            properties: key_values(&database.properties),
        })
    }
}
