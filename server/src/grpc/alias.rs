//! Aliases: other names of a collection.

use elanus_proto::codes::Code;
use elanus_proto::common::Status;
use elanus_proto::milvus::*;

use crate::convert::names;
use crate::node::{Context, Node};
use crate::status::{Failure, success};

impl Node {
    pub(super) async fn create_alias(
        &self,
        ctx: &Context,
        request: CreateAliasRequest,
    ) -> Result<Status, Failure> {
        let alias = &request.alias;
        names::check(names::Kind::Alias, alias, &self.limits)?;
        let info = self.describe(ctx, &request.collection_name)?;
        let catalog = self.catalog();
        match catalog.resolve(&ctx.db, alias) {
            None => {}
            Some(taken) if taken.name == *alias => return Err(conflict(alias)),
            Some(taken) if taken.id == info.id => return Ok(success()),
            Some(taken) => {
                return Err(Failure::new(
                    Code::AliasAlreadyExist,
                    format!(
                        "{alias} is alias to another collection: {}: {}[database={}][alias={alias}]",
                        taken.name,
                        Code::AliasAlreadyExist,
                        ctx.db
                    ),
                ));
            }
        }
        self.engine.create_alias(&ctx.db, alias, &info.name).await?;
        Ok(success())
    }

    pub(super) async fn drop_alias(
        &self,
        ctx: &Context,
        request: DropAliasRequest,
    ) -> Result<Status, Failure> {
        self.require_database(&self.catalog(), &ctx.db)?;
        match self.engine.drop_alias(&ctx.db, &request.alias).await {
            Ok(()) | Err(elanus_storage::Error::AliasNotFound(_)) => Ok(success()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn alter_alias(
        &self,
        ctx: &Context,
        request: AlterAliasRequest,
    ) -> Result<Status, Failure> {
        let alias = &request.alias;
        names::check(names::Kind::Alias, alias, &self.limits)?;
        let info = self.describe(ctx, &request.collection_name)?;
        let catalog = self.catalog();
        match catalog.resolve(&ctx.db, alias) {
            None => return Err(missing(&ctx.db, alias)),
            Some(taken) if taken.name == *alias => return Err(conflict(alias)),
            Some(current) if current.id == info.id => return Ok(success()),
            Some(_) => {}
        }
        self.engine.alter_alias(&ctx.db, alias, &info.name).await?;
        Ok(success())
    }

    pub(super) async fn describe_alias(
        &self,
        ctx: &Context,
        request: DescribeAliasRequest,
    ) -> Result<DescribeAliasResponse, Failure> {
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        let alias = request.alias;
        let collection = catalog
            .aliases(&ctx.db)
            .find(|(name, _)| *name == alias)
            .map(|(_, info)| info.name.clone())
            .ok_or_else(|| missing(&ctx.db, &alias))?;
        Ok(DescribeAliasResponse { status: None, db_name: ctx.db.clone(), alias, collection })
    }

    pub(super) async fn list_aliases(
        &self,
        ctx: &Context,
        request: ListAliasesRequest,
    ) -> Result<ListAliasesResponse, Failure> {
        let catalog = self.catalog();
        self.require_database(&catalog, &ctx.db)?;
        let name = &request.collection_name;
        let (aliases, collection_name) = if name.is_empty() {
            let all = catalog.aliases(&ctx.db).map(|(alias, _)| alias.to_owned());
            (all.collect(), String::new())
        } else {
            let info = self.describe(ctx, name)?;
            (catalog.aliases_of(info.id).map(str::to_owned).collect(), info.name.clone())
        };
        Ok(ListAliasesResponse { status: None, db_name: ctx.db.clone(), collection_name, aliases })
    }
}

fn conflict(name: &str) -> Failure {
    Failure::new(
        Code::AliasCollectionNameConflict,
        format!(
            "collection name [{name}] conflicts with an existing collection: {}",
            Code::AliasCollectionNameConflict
        ),
    )
}

fn missing(db: &str, alias: &str) -> Failure {
    Failure::new(
        Code::AliasNotFound,
        format!("{}[database={db}][alias={alias}]", Code::AliasNotFound),
    )
}
