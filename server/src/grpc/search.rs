//! Search, hybrid search and query: requests bound, run where `Pools` has them run, answered.
//!
//! The work of a request is one job of the pools: filters compiled, rows selected, searched,
//! ranked and fetched. Only models are waited for outside of it: texts become vectors before,
//! candidates are read by a re-ranker in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use elanus_index::Cancel;
use elanus_proto::milvus::{
    HybridSearchRequest, QueryRequest, QueryResults, SearchRequest, SearchResults,
};
use elanus_proto::schema::{FunctionScore, SearchIteratorV2Results, SearchResultData};
use elanus_storage::{Collection, CollectionInfo, Held, Kind, ReadView, RowAddr, Schema, Ts};

use crate::convert::placeholder::QueryRows;
use crate::convert::results::{self, COUNT, Output, Ranking, restored};
use crate::node::{Context, Node};
use crate::plan::filter::Filter;
use crate::plan::group::Grouping;
use crate::plan::hybrid::{self, Candidates, Fusion};
use crate::plan::iterate::{self, Cursor, PageRequest};
use crate::plan::route::ByKey;
use crate::plan::score::{Reranker, Scoring};
use crate::plan::search::{self, Leg, LegScope, Page, Readable, Selections};
use crate::plan::{Params, function};
use crate::status::Failure;

/// Timestamps up to this one stand for consistency levels, not for moments.
const LEVELS: u64 = 2;

/// A cursor that is to be kept, and what counts its memory.
type Kept = (Cursor, Held);

/// What all legs of a request have in common in the search pools.
#[derive(Clone)]
struct Job {
    view: ReadView,
    schema: Arc<Schema>,
    readable: Readable,
    legs: Arc<Vec<Leg>>,
    output: Output,
    max_bytes: usize,
    cancel: Cancel,
}

impl Node {
    /// One search on one vector field.
    pub(super) async fn search(
        &self,
        ctx: &Context,
        request: SearchRequest,
    ) -> Result<SearchResults, Failure> {
        self.search_plain(ctx, request).await.map_err(|failure| failure.context("failed to search"))
    }

    async fn search_plain(
        &self,
        ctx: &Context,
        mut request: SearchRequest,
    ) -> Result<SearchResults, Failure> {
        let (_, collection) = self.collection(ctx, &request.collection_name)?;
        let params = Params::parse(&request.search_params)?;
        let (info, view) =
            view(&collection, params.flag("iterator")?, request.guarantee_timestamp)?;
        let readable = self.readable(&info, &request.partition_names)?;
        refuse_extras(&request)?;
        refuse_order_by(&params)?;
        let page = Page::parse(&params, "topk", "search_params", &self.limits)?;
        let grouping = Grouping::parse(&params, &info.schema, &self.limits)?;
        let iteration = PageRequest::parse(&params, &info, page)?;
        let output = Output::resolve(&info.schema, &request.output_fields)?;
        let score = request.function_score.take();
        let leg = Leg::bind(&info, &self.limits, request, &params, page.end())?;
        check_combination(&leg, grouping.as_ref(), params.flag("iterator")?, iteration.is_some())?;
        let scoring = score.map(|score| self.scoring(&score, &info, &leg)).transpose()?;
        let embedded = function::queries(self.engines(), &[leg.texts()]).await?;
        let (cancel, _guard) = cancel_on_drop();
        let legs = Arc::new(vec![leg]);
        let max_bytes = self.limits.output_bytes;
        let schema = Arc::clone(&info.schema);
        let job = Job { view, schema, readable, legs, output, max_bytes, cancel };
        let session_ts = self.session_ts(&job.view);
        let results = match (scoring, iteration) {
            (Some(scoring), None) => {
                let metrics = job.legs.iter().map(|leg| leg.metric).collect();
                let fusion = Fusion { scoring, metrics, grouping, page, full_groups_only: false };
                self.fused(job, embedded, fusion).await?
            }
            (Some(_), Some(_)) => {
                return Err(Failure::invalid("function_score is not supported in an iteration"));
            }
            (None, Some(iteration)) => self.iterated(job, embedded, page, iteration).await?,
            (None, None) => {
                let kind = match &grouping {
                    None => job.kind(&embedded, &[]),
                    // It looks on until groups are full.
                    Some(_) => None,
                };
                let run = move || job.plain(embedded, page, grouping.as_ref());
                self.engine.pools().search(kind, run).await??
            }
        };
        Ok(SearchResults {
            results: Some(results),
            collection_name: info.name.clone(),
            session_ts,
            ..Default::default()
        })
    }

    /// Several searches over one view, fused into one ranking.
    pub(super) async fn hybrid_search(
        &self,
        ctx: &Context,
        request: HybridSearchRequest,
    ) -> Result<SearchResults, Failure> {
        let searched = self.search_hybrid(ctx, request).await;
        searched.map_err(|failure| failure.context("failed to search"))
    }

    async fn search_hybrid(
        &self,
        ctx: &Context,
        request: HybridSearchRequest,
    ) -> Result<SearchResults, Failure> {
        let (_, collection) = self.collection(ctx, &request.collection_name)?;
        // Before the texts are embedded: the view has the vectors that the functions make.
        let (info, view) = collection.read();
        let readable = self.readable(&info, &request.partition_names)?;
        if !request.function_chains.is_empty() {
            return Err(Failure::invalid("function_chains are not supported, use function_score"));
        }
        let count = request.requests.len();
        if count == 0 || count as u64 > self.limits.sub_searches {
            return Err(Failure::invalid(format!(
                "maximum of ann search requests is {}, and at least one is needed, but got {count}",
                self.limits.sub_searches
            )));
        }
        let params = Params::parse(&request.rank_params)?;
        refuse_order_by(&params)?;
        let page = Page::parse(&params, "limit", "rank_params", &self.limits)?;
        let grouping = Grouping::parse(&params, &info.schema, &self.limits)?;
        let output = Output::resolve(&info.schema, &request.output_fields)?;
        let legs = request
            .requests
            .into_iter()
            .map(|leg| self.hybrid_leg(&info, leg, page))
            .collect::<Result<Vec<_>, _>>()?;
        let queries = legs.first().map_or(0, |leg| leg.input.len());
        if legs.iter().any(|leg| leg.input.len() != queries) {
            return Err(Failure::invalid("sub search request nq should be the same"));
        }
        let scoring = match &request.function_score {
            Some(score) if !score.functions.is_empty() => {
                Scoring::parse(score, &info.schema, count, queries)?
            }
            _ => hybrid::ranker(&params, count)?,
        };
        if !scoring.boosts.is_empty() {
            return Err(Failure::invalid(
                "the boost reranker is for a plain search, hybrid search does not support it",
            ));
        }
        let texts: Vec<_> = legs.iter().map(Leg::texts).collect();
        let embedded = function::queries(self.engines(), &texts).await?;
        let session_ts = self.session_ts(&view);
        let (cancel, _guard) = cancel_on_drop();
        let fusion = Fusion {
            scoring,
            metrics: legs.iter().map(|leg| leg.metric).collect(),
            full_groups_only: grouping.as_ref().is_some_and(|grouping| grouping.strict),
            grouping,
            page,
        };
        let legs = Arc::new(legs);
        let max_bytes = self.limits.output_bytes;
        let schema = Arc::clone(&info.schema);
        let job = Job { view, schema, readable, legs, output, max_bytes, cancel };
        let results = self.fused(job, embedded, fusion).await?;
        Ok(SearchResults {
            results: Some(results),
            collection_name: info.name.clone(),
            session_ts,
            ..Default::default()
        })
    }

    /// Binds one search of a hybrid search; its own `topk` says how many candidates it gives.
    fn hybrid_leg(
        &self,
        info: &CollectionInfo,
        request: SearchRequest,
        page: Page,
    ) -> Result<Leg, Failure> {
        let params = Params::parse(&request.search_params)?;
        let k = match params.int("topk")? {
            None => page.end(),
            Some(k) => {
                let top = i64::try_from(self.limits.top_k).unwrap_or(i64::MAX);
                let valid = usize::try_from(k).ok().filter(|_| (1..=top).contains(&k));
                valid.ok_or_else(|| {
                    Failure::invalid(format!(
                        "topk [{k}] is invalid, it should be in range [1, {top}], but got {k}"
                    ))
                })?
            }
        };
        Leg::bind(info, &self.limits, request, &params, k)
    }

    /// The function rankers of a plain search.
    fn scoring(
        &self,
        score: &FunctionScore,
        info: &CollectionInfo,
        leg: &Leg,
    ) -> Result<Scoring, Failure> {
        Scoring::parse(score, &info.schema, 1, leg.input.len())
    }

    /// Runs the legs, fuses their hits and fetches the winners.
    async fn fused(
        &self,
        job: Job,
        embedded: Vec<Option<QueryRows>>,
        fusion: Fusion,
    ) -> Result<SearchResultData, Failure> {
        let pools = self.engine.pools();
        if !matches!(fusion.scoring.reranker, Some(Reranker::Model(_))) {
            let kind = match (&fusion.grouping, fusion.scoring.boosts.is_empty()) {
                (None, true) => job.kind(&embedded, &fusion.columns()),
                // As a grouping search does, or filters that look at other columns.
                (Some(_), _) | (_, false) => None,
            };
            let run = move || {
                let candidates = job.candidates(embedded, &fusion)?;
                job.finish(candidates, &[], &fusion)
            };
            return pools.search(kind, run).await?;
        }
        let fusion = Arc::new(fusion);
        let (first, wanted) = (job.clone(), Arc::clone(&fusion));
        let candidates = pools.search(None, move || first.candidates(embedded, &wanted)).await??;
        let scores = hybrid::model_scores(self.engines(), &fusion.scoring, &candidates).await?;
        pools.search(None, move || job.finish(candidates, &scores, &fusion)).await?
    }

    /// One page of a search iterator.
    async fn iterated(
        &self,
        job: Job,
        embedded: Vec<Option<QueryRows>>,
        page: Page,
        iteration: PageRequest,
    ) -> Result<SearchResultData, Failure> {
        let field = job.legs[0].field.id;
        let token = match &iteration.token {
            Some(token) => iterate::resume(token, field).map(|()| token.clone())?,
            None => iterate::token(self.next_ts(), field),
        };
        let told = iteration.last_bound;
        let before = told.and_then(|told| self.plan.iterators.take(&token, told));
        let run = move || job.page(embedded, page, &iteration, before);
        let (mut results, last_bound, cursor) = self.engine.pools().search(None, run).await??;
        if let Some((cursor, memory)) = cursor {
            self.plan.iterators.put(&token, last_bound, cursor, Some(memory));
        }
        results.search_iterator_v2_results = Some(SearchIteratorV2Results { token, last_bound });
        Ok(results)
    }

    /// Rows by filter or key, in key order; or their number.
    pub(super) async fn query(
        &self,
        ctx: &Context,
        request: QueryRequest,
    ) -> Result<QueryResults, Failure> {
        self.query_plain(ctx, request).await.map_err(|failure| failure.context("failed to query"))
    }

    async fn query_plain(
        &self,
        ctx: &Context,
        request: QueryRequest,
    ) -> Result<QueryResults, Failure> {
        let (_, collection) = self.collection(ctx, &request.collection_name)?;
        let params = Params::parse(&request.query_params)?;
        let (info, view) =
            view(&collection, params.flag("iterator")?, request.guarantee_timestamp)?;
        let readable = self.readable(&info, &request.partition_names)?;
        refuse_order_by(&params)?;
        if params.has("group_by_fields") {
            return Err(Failure::invalid(
                "aggregation in a query (group_by_fields) is not supported",
            ));
        }
        let counting =
            request.output_fields.iter().any(|name| name.trim().eq_ignore_ascii_case(COUNT));
        let window = Window::parse(&params, self.limits.top_k)?;
        if counting {
            if request.output_fields.len() > 1 {
                return Err(Failure::invalid(
                    "count(*) cannot be combined with other output fields",
                ));
            }
            if window.limit.is_some() || window.offset > 0 {
                return Err(Failure::invalid("count entities with pagination is not allowed"));
            }
        } else if request.expr.trim().is_empty() && window.limit.is_none() {
            return Err(Failure::invalid("empty expression should be used with limit"));
        }
        let output = match counting {
            true => None,
            false => {
                let output = Output::resolve(&info.schema, &request.output_fields)?;
                Some(output.with_primary(&info.schema))
            }
        };
        let scope = LegScope {
            filter: Filter { text: request.expr, values: request.expr_template_values },
            ignore_growing: params.flag("ignore_growing")?,
        };
        let session_ts = self.session_ts(&view);
        let (schema, max_bytes) = (Arc::clone(&info.schema), self.limits.output_bytes);
        let (cancel, _guard) = cancel_on_drop();
        let run = move || {
            let selection = search::select(&view, &schema, &scope, &readable, &cancel)?;
            let Some(output) = output else {
                return Ok(results::count_results(&schema, view.count(&selection)));
            };
            let rows = view.rows_by_key(&selection, window.offset, window.limit)?;
            let names: Vec<&str> = output.fields().collect();
            let taken = results::take(&view, &rows, &names, max_bytes, "query")?;
            results::query_results(&schema, &output, &taken.batch)
        };
        let results: Result<QueryResults, Failure> = self.engine.pools().search(None, run).await?;
        Ok(QueryResults { collection_name: info.name.clone(), session_ts, ..results? })
    }

    /// The partitions that a search or query may read.
    fn readable(&self, info: &CollectionInfo, names: &[String]) -> Result<Readable, Failure> {
        let partitions = self.readable_partitions(info, names)?;
        Ok(Readable { partitions, by_key: ByKey::of(info) })
    }

    /// The moment that a view shows, for the client's next page. Never zero: clients take that
    /// for "unknown".
    fn session_ts(&self, view: &ReadView) -> u64 {
        match view.ts() {
            Ts::ZERO => self.engine.clock().now().0,
            ts => ts.0,
        }
    }
}

impl Job {
    /// What tells it from searches that take another time or read other columns; `ranking` are those
    /// that decide the ranking.
    fn kind(&self, embedded: &[Option<QueryRows>], ranking: &[&str]) -> Option<Kind> {
        let legs = self.legs.iter().zip(embedded);
        let legs: Option<Vec<_>> = legs.map(|(leg, rows)| leg.likeness(rows.as_ref())).collect();
        let output: Vec<&str> = self.output.fields().collect();
        self.view.kind(&(legs?, output, ranking, &self.readable.partitions))
    }

    /// The query vectors of all legs.
    fn rows(&self, embedded: Vec<Option<QueryRows>>) -> Result<Vec<QueryRows>, Failure> {
        self.legs.iter().zip(embedded).map(|(leg, rows)| leg.rows(&self.view, rows)).collect()
    }

    fn selections(&self) -> Result<Selections, Failure> {
        Selections::new(&self.view, &self.schema, &self.legs, &self.readable, &self.cancel)
    }

    /// A search with one leg and nothing after it.
    fn plain(
        &self,
        embedded: Vec<Option<QueryRows>>,
        page: Page,
        grouping: Option<&Grouping>,
    ) -> Result<SearchResultData, Failure> {
        let selections = self.selections()?;
        let (leg, rows) = (&self.legs[0], self.rows(embedded)?);
        let hits = match grouping {
            Some(grouping) => search::run_grouped(
                &self.view,
                leg,
                &rows[0],
                selections.of(0),
                grouping,
                page,
                &self.cancel,
            )?,
            None => search::run(&self.view, &self.legs, rows, selections, &self.cancel)?
                .into_iter()
                .flatten()
                .map(|hits| page.cut(hits.into_iter().map(|hit| (hit.addr, hit.score)).collect()))
                .collect(),
        };
        self.ranking(hits, leg.metric.larger_is_better(), page, grouping)
    }

    /// The candidates that all legs find, with what decides their ranking.
    fn candidates(
        &self,
        embedded: Vec<Option<QueryRows>>,
        fusion: &Fusion,
    ) -> Result<Vec<Candidates>, Failure> {
        let selections = self.selections()?;
        let rows = self.rows(embedded)?;
        let found = match &fusion.grouping {
            None => search::run(&self.view, &self.legs, rows, selections, &self.cancel)?,
            Some(by) => search::run_all_grouped(
                &self.view,
                &self.legs,
                &rows,
                &selections,
                by,
                &self.cancel,
            )?,
        };
        hybrid::candidates(&self.view, &self.schema, &found, &fusion.columns())
    }

    /// Ranks the candidates and fetches the winners.
    fn finish(
        &self,
        candidates: Vec<Candidates>,
        model_scores: &[Vec<f32>],
        fusion: &Fusion,
    ) -> Result<SearchResultData, Failure> {
        let mut hits = Vec::with_capacity(candidates.len());
        for (query, mut candidates) in candidates.into_iter().enumerate() {
            let scores = model_scores.get(query).map(Vec::as_slice);
            hits.push(fusion.rank(&self.view, &self.schema, &mut candidates, scores)?);
        }
        self.ranking(hits, fusion.larger_is_better(), fusion.page, fusion.grouping.as_ref())
    }

    fn ranking(
        &self,
        hits: Vec<Vec<(RowAddr, f32)>>,
        larger_is_better: bool,
        page: Page,
        grouping: Option<&Grouping>,
    ) -> Result<SearchResultData, Failure> {
        let group_by = grouping.and_then(|grouping| self.schema.field(&grouping.field)).cloned();
        let ranking =
            Ranking { hits, larger_is_better, round_decimal: page.round_decimal, group_by };
        ranking.fetch(&self.view, &self.schema, &self.output, self.max_bytes)
    }

    /// One page of an iterator: the result, the bound to tell the client, and the cursor to keep, if
    /// there is more and memory for it.
    fn page(
        &self,
        embedded: Vec<Option<QueryRows>>,
        page: Page,
        iteration: &PageRequest,
        before: Option<Cursor>,
    ) -> Result<(SearchResultData, f32, Option<Kept>), Failure> {
        let selections = self.selections()?;
        let (leg, rows) = (&self.legs[0], &self.rows(embedded)?[0]);
        let larger_is_better = leg.metric.larger_is_better();
        let internal = |told: f32| if larger_is_better { told } else { restored(told) };
        let before = before.filter(|cursor| cursor.is_of(leg, rows));
        let behind = || Cursor::new(leg, rows, iteration.last_bound.map(internal));
        let mut cursor = before.unwrap_or_else(behind);
        let found =
            cursor.next(&self.view, leg, iteration.batch, selections.of(0), &self.cancel)?;
        let is_over = found.is_empty();
        let ranking = Ranking {
            hits: vec![found.into_iter().map(|hit| (hit.addr, hit.score)).collect()],
            larger_is_better,
            round_decimal: page.round_decimal,
            group_by: None,
        };
        let told = match (cursor.lowest(), iteration.last_bound) {
            (Some(lowest), _) => ranking.shown(lowest),
            (None, Some(bound)) => bound,
            (None, None) if larger_is_better => f32::MAX,
            (None, None) => f32::MIN,
        };
        let results = ranking.fetch(&self.view, &self.schema, &self.output, self.max_bytes)?;
        let memory = if is_over { None } else { self.view.hold(cursor.bytes()).ok() };
        Ok((results, told, memory.map(|memory| (cursor, memory))))
    }
}

/// Which rows of a query are wanted.
#[derive(Clone, Copy, Debug)]
struct Window {
    offset: usize,
    limit: Option<usize>,
}

impl Window {
    fn parse(params: &Params, top: u64) -> Result<Self, Failure> {
        let limit = params.int("limit")?.filter(|limit| *limit != -1);
        let offset = params.int("offset")?.unwrap_or(0);
        let top = i64::try_from(top).unwrap_or(i64::MAX);
        if !(0..=top).contains(&offset) {
            return Err(Failure::invalid(format!(
                "invalid max query result window, offset [{offset}] is invalid, should be in range [0, {top}]"
            )));
        }
        let Some(limit) = limit else {
            if offset > 0 {
                return Err(Failure::invalid(format!("offset [{offset}] needs a limit")));
            }
            return Ok(Self { offset: 0, limit: None });
        };
        if !(1..=top).contains(&limit) {
            return Err(Failure::invalid(format!(
                "invalid max query result window, limit [{limit}] is invalid, should be in range [1, {top}], but got {limit}"
            )));
        }
        let sum = offset + limit;
        if sum > top {
            return Err(Failure::invalid(format!(
                "invalid max query result window, (offset+limit) should be in range [1, {top}], but got {sum}"
            )));
        }
        let index = |value| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Self { offset: index(offset), limit: Some(index(limit)) })
    }
}

/// What a request sees, and the schema it is read by, which go together: the newest rows, or for an
/// iterator those of its first page.
///
/// A write is visible when it is acknowledged, so every consistency level is satisfied at once;
/// a timestamp in the future is no reason to wait.
fn view(
    collection: &Collection,
    iterating: bool,
    guarantee: u64,
) -> Result<(Arc<CollectionInfo>, ReadView), Failure> {
    if iterating && guarantee > LEVELS {
        return Ok(collection.read_at(Ts(guarantee))?);
    }
    Ok(collection.read())
}

/// Refuses the parts of a search that are not supported, instead of leaving them out silently.
fn refuse_extras(request: &SearchRequest) -> Result<(), Failure> {
    let extra = if request.search_aggregation.is_some() {
        "search_aggregation"
    } else if !request.function_chains.is_empty() {
        "function_chains"
    } else if request.highlighter.is_some() {
        "a highlighter"
    } else if !request.sub_reqs.is_empty() {
        "sub_reqs (use hybrid search)"
    } else {
        return Ok(());
    };
    Err(Failure::invalid(format!("{extra} in a search is not supported")))
}

fn refuse_order_by(params: &Params) -> Result<(), Failure> {
    if params.has("order_by_fields") {
        return Err(Failure::invalid("order_by_fields is not supported"));
    }
    Ok(())
}

/// Refuses what Milvus does not let go together.
fn check_combination(
    leg: &Leg,
    grouping: Option<&Grouping>,
    iterating: bool,
    iterating_v2: bool,
) -> Result<(), Failure> {
    if grouping.is_some() {
        if iterating {
            return Err(Failure::invalid("Not allowed to do groupBy when doing iteration"));
        }
        if leg.has_range() {
            return Err(Failure::invalid(
                "Not allowed to do range-search when doing search-group-by",
            ));
        }
        if matches!(leg.field.data_type, elanus_storage::schema::DataType::BinaryVector { .. }) {
            return Err(Failure::invalid(
                "not support search_group_by operation based on binary vector column",
            ));
        }
    }
    if iterating_v2 && leg.input.len() != 1 {
        return Err(Failure::invalid(format!(
            "search iterator does not support processing multiple vectors simultaneously, nq is {}",
            leg.input.len()
        )));
    }
    Ok(())
}

/// Raises the flag of its request when the caller has gone away.
struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stop signal, and the guard that gives it when the request's future is dropped.
fn cancel_on_drop() -> (Cancel, Guard) {
    let cancel = Cancel::never();
    let guard = Guard(cancel.flag());
    (cancel, guard)
}
