//! One search: what a request asks of one vector field, bound to the schema, and its execution.
//!
//! A [`Leg`] is bound once, with all of Milvus's checks; running it is [`run`], which shares the
//! selection of rows between legs whose filters are equal. A plain search has one leg, a hybrid
//! search several ([`super::hybrid`]).

use std::hash::Hash;
use std::sync::Arc;

use elanus_index::{Bounds, Cancel, Metric, SearchParams};
use elanus_proto::milvus::SearchRequest;
use elanus_proto::milvus::search_request::SearchInput;
use elanus_storage::schema::{Field, Schema};
use elanus_storage::{
    AnnQuery, CollectionInfo, Found, Keys, ReadView, RowAddr, Scope, Selection, share_out,
    share_out_owned,
};

use super::Params;
use super::filter::Filter;
use super::function::TextQuery;
use super::group::{self, Grouping};
use super::rank::{Candidate, narrow};
use super::route::ByKey;
use crate::convert::index::{IndexSpec, spec_of_field};
use crate::convert::placeholder::{self, Placeholder, QueryRows};
use crate::convert::results::restored;
use crate::limits::Limits;
use crate::status::Failure;

/// What a leg looks for.
#[derive(Clone, Debug)]
pub enum Input {
    /// Vectors of the request.
    Rows(QueryRows),
    /// Texts that a function turns into vectors.
    Texts(Box<TextQuery>),
    /// The vectors of rows with these keys.
    Keys(Keys),
}

/// Which rows a leg may find.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LegScope {
    /// The filter expression.
    pub filter: Filter,
    /// Leave out rows that are not sealed yet.
    pub ignore_growing: bool,
}

/// A search on one field.
#[derive(Clone, Debug)]
pub struct Leg {
    /// The vector field.
    pub field: Field,
    /// The metric of its index.
    pub metric: Metric,
    /// What is looked for; one or more queries.
    pub input: Input,
    /// Which rows may be found.
    pub scope: LegScope,
    /// Hits (or groups) wanted per query, range limits and index parameters.
    pub params: SearchParams,
    /// Every row is looked at, whatever index there is.
    pub exact: bool,
}

/// Which part of a ranking is wanted, and how its scores are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Hits or groups to skip.
    pub offset: usize,
    /// Hits or groups wanted.
    pub limit: usize,
    /// Decimals of the scores; −1 for all.
    pub round_decimal: i32,
}

impl Page {
    /// Reads `offset`, `round_decimal` and the limit named `limit_key`.
    ///
    /// # Errors
    /// Code 1100 when one is missing or out of range.
    pub fn parse(
        params: &Params,
        limit_key: &str,
        place: &str,
        limits: &Limits,
    ) -> Result<Self, Failure> {
        let limit = params
            .int(limit_key)?
            .ok_or_else(|| Failure::invalid(format!("{limit_key} not found in {place}")))?;
        let top = i64::try_from(limits.top_k).unwrap_or(i64::MAX);
        if !(1..=top).contains(&limit) {
            return Err(Failure::invalid(format!(
                "{limit_key} [{limit}] is invalid, it should be in range [1, {top}], but got {limit}"
            )));
        }
        let offset = params.int("offset")?.unwrap_or(0);
        if !(0..=top).contains(&offset) {
            return Err(Failure::invalid(format!(
                "offset [{offset}] is invalid, it should be in range [0, {top}]"
            )));
        }
        let sum = offset + limit;
        if sum > top {
            return Err(Failure::invalid(format!(
                "(offset+limit) should be in range [1, {top}], but got {sum}"
            )));
        }
        let round_decimal = params.int("round_decimal")?.unwrap_or(-1);
        let decimals =
            i32::try_from(round_decimal).ok().filter(|decimals| (-1..=6).contains(decimals));
        let round_decimal = decimals.ok_or_else(|| {
            Failure::invalid(format!(
                "round_decimal [{round_decimal}] is invalid, should be -1 or an integer in range [0, 6]"
            ))
        })?;
        Ok(Self { offset: index(offset), limit: index(limit), round_decimal })
    }

    /// Hits to find: those wanted and those skipped.
    pub fn end(&self) -> usize {
        self.offset + self.limit
    }

    /// Cuts a ranking down to the page.
    pub fn cut<T>(&self, hits: Vec<T>) -> Vec<T> {
        hits.into_iter().skip(self.offset).take(self.limit).collect()
    }
}

impl Leg {
    /// Binds a request that wants `k` hits per query.
    ///
    /// # Errors
    /// Code 1100 for everything that the request gets wrong, with Milvus's texts.
    pub fn bind(
        info: &CollectionInfo,
        limits: &Limits,
        request: SearchRequest,
        params: &Params,
        k: usize,
    ) -> Result<Self, Failure> {
        let field = vector_field(&info.schema, params)?.clone();
        let spec = spec_of_field(info, &field)?;
        let metric = metric(&spec, &field, params)?;
        let effort = Effort::parse(&spec, params)?;
        let input = match request.search_input {
            Some(SearchInput::PlaceholderGroup(group)) => {
                match placeholder::parse(group, &field)? {
                    Placeholder::Rows(rows) => Input::Rows(rows),
                    Placeholder::Texts(texts) => {
                        Input::Texts(Box::new(TextQuery::new(&info.schema, &field.name, texts)?))
                    }
                }
            }
            Some(SearchInput::Ids(ids)) => {
                Input::Keys(placeholder::keys(ids, info.schema.primary())?)
            }
            None => {
                return Err(Failure::invalid(
                    "a search needs query vectors, texts or ids: placeholder_group is missing",
                ));
            }
        };
        let queries = input.len();
        if queries == 0 || queries as u64 > limits.queries {
            return Err(Failure::invalid(format!(
                "nq [{queries}] is invalid, nq (number of search vector per search request) should be in range [1, {}], but got {queries}",
                limits.queries
            )));
        }
        let drop_ratio = params.float("drop_ratio_search")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&drop_ratio) {
            return Err(Failure::invalid(format!(
                "drop_ratio_search [{drop_ratio}] is invalid, should be in range [0, 1)"
            )));
        }
        Ok(Self {
            metric,
            input,
            scope: LegScope {
                filter: Filter { text: request.dsl, values: request.expr_template_values },
                ignore_growing: params.flag("ignore_growing")?,
            },
            params: SearchParams {
                k,
                ef: effort.beam,
                bounds: bounds(metric, params)?,
                drop_ratio: narrow(drop_ratio),
            },
            // The first version of iterators goes on behind a range of scores: no page may miss what
            // the next begins behind.
            exact: effort.exact || (params.flag("iterator")? && !params.flag("search_iter_v2")?),
            field,
        })
    }

    /// The query vectors, once texts are embedded and keys are looked up.
    ///
    /// # Errors
    /// Code 1100 for keys without a row.
    pub fn rows(&self, view: &ReadView, embedded: Option<QueryRows>) -> Result<QueryRows, Failure> {
        match (&self.input, embedded) {
            (_, Some(rows)) => Ok(rows),
            (Input::Rows(rows), None) => Ok(rows.clone()),
            (Input::Keys(keys), None) => placeholder::by_keys(view, &self.field, keys),
            (Input::Texts(_), None) => Err(Failure::internal("query texts were not embedded")),
        }
    }

    /// What tells it from searches that take another time. `None` where those that say the same may
    /// take very different times: several queries, rows named by key, a range, values for a filter.
    pub fn likeness<'a>(&'a self, embedded: Option<&'a QueryRows>) -> Option<impl Hash + 'a> {
        let (rows, filter) = (embedded.or(self.input.rows())?, &self.scope.filter);
        let entries = match rows {
            QueryRows::Dense(rows) if rows.len() == 1 => None,
            // About as many.
            QueryRows::Sparse(rows) if rows.len() == 1 => rows[0].len().checked_ilog2(),
            QueryRows::Dense(_) | QueryRows::Sparse(_) => return None,
        };
        if self.has_range() || !filter.values.is_empty() {
            return None;
        }
        let SearchParams { k, ef, drop_ratio, .. } = self.params;
        let effort = (k, ef, drop_ratio.to_bits(), entries, self.exact);
        Some((self.field.id, effort, filter.text.as_str(), self.scope.ignore_growing))
    }

    /// The leg's texts, if it has any.
    pub fn texts(&self) -> Option<&TextQuery> {
        match &self.input {
            Input::Texts(texts) => Some(texts),
            Input::Rows(_) | Input::Keys(_) => None,
        }
    }

    /// Whether the search is limited to a range of scores.
    pub fn has_range(&self) -> bool {
        self.params.bounds != Bounds::default()
    }
}

impl Input {
    /// Number of queries.
    pub fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Texts(query) => query.texts.len(),
            Self::Keys(keys) => keys.len(),
        }
    }

    /// The vectors, where the request has them.
    fn rows(&self) -> Option<&QueryRows> {
        match self {
            Self::Rows(rows) => Some(rows),
            Self::Texts(_) | Self::Keys(_) => None,
        }
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The field that `anns_field` names, or the only vector field there is.
fn vector_field<'a>(schema: &'a Schema, params: &Params) -> Result<&'a Field, Failure> {
    if let Some(name) = params.text("anns_field") {
        let field = schema.field(&name).ok_or_else(|| {
            Failure::invalid(format!(
                "failed to get field schema by name: field not found[field={name}]"
            ))
        })?;
        if !field.data_type.is_vector() {
            return Err(Failure::invalid(format!(
                "field ({name}) to search is not of vector data type, it is {}",
                field.data_type.name()
            )));
        }
        return Ok(field);
    }
    let mut fields = schema.fields.iter().filter(|field| field.data_type.is_vector());
    match (fields.next(), fields.next()) {
        (Some(field), None) => Ok(field),
        (Some(_), Some(_)) => Err(Failure::invalid(
            "multiple anns_fields exist, please specify a anns_field in search_params",
        )),
        (None, _) => Err(Failure::invalid("schema does not contain vector field")),
    }
}

fn metric(spec: &IndexSpec, field: &Field, params: &Params) -> Result<Metric, Failure> {
    let metric = spec
        .metric()
        .ok_or_else(|| Failure::internal(format!("field {} has no metric", field.name)))?;
    match params.text("metric_type") {
        Some(actual) if !actual.eq_ignore_ascii_case(&spec.metric_name) => {
            Err(Failure::expected("metric type not match", spec.metric_name.clone(), actual))
        }
        _ => Ok(metric),
    }
}

/// Places of the beam for each cluster that an IVF search would look into: at Milvus's usual 8
/// clusters it is as wide as where nothing is asked for.
const BEAM_PER_PROBE: usize = 8;
/// Clusters where the definition of an IVF index names no number.
const DEFAULT_NLIST: usize = 128;
/// Places of the beam for each level of AUTOINDEX.
const BEAM_PER_LEVEL: usize = 64;

/// How hard a search looks, in the words of the index type that it was defined as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Effort {
    /// Beam width, where one is asked for.
    beam: Option<usize>,
    /// As good as looking at every row is asked for.
    exact: bool,
}

impl Effort {
    /// `ef` counts for every type; `nprobe` for those with clusters, `search_list` for DISKANN,
    /// `reorder_k` for SCANN, `level` for AUTOINDEX. What belongs to another type is ignored.
    fn parse(spec: &IndexSpec, params: &Params) -> Result<Self, Failure> {
        let number = |key: &str| match params.int(key)? {
            None => Ok(None),
            Some(number) => match usize::try_from(number) {
                Ok(number @ 1..) => Ok(Some(number)),
                _ => Err(Failure::invalid(format!(
                    "{key} [{number}] is invalid, it should be at least 1"
                ))),
            },
        };
        if let Some(ef) = number("ef")? {
            return Ok(Self { beam: Some(ef), exact: false });
        }
        let kind = spec.index_type.as_str();
        match kind {
            "DISKANN" => Ok(Self { beam: number("search_list")?, exact: false }),
            "AUTOINDEX" => {
                let beam = number("level")?.map(|level| level.saturating_mul(BEAM_PER_LEVEL));
                Ok(Self { beam, exact: false })
            }
            _ if kind == "SCANN" || kind.contains("IVF_") => {
                let nlist = spec.build.get("nlist").and_then(|text| text.parse().ok());
                let probes = number("nprobe")?;
                let beam = probes.map(|probes| probes.saturating_mul(BEAM_PER_PROBE));
                let exact = probes.is_some_and(|n| n >= nlist.unwrap_or(DEFAULT_NLIST));
                Ok(Self { beam: beam.max(number("reorder_k")?), exact })
            }
            _ => Ok(Self::default()),
        }
    }
}

/// The range of a search, on internal scores: its `radius` end is open, its `range_filter` end
/// closed.
fn bounds(metric: Metric, params: &Params) -> Result<Bounds, Failure> {
    let radius = params.float("radius")?;
    let inner = params.float("range_filter")?;
    if let (Some(radius), Some(inner)) = (radius, inner) {
        if metric.larger_is_better() && inner <= radius {
            return Err(Failure::invalid(format!(
                "range_filter must more than radius when IP/BM25/COSINE, but range_filter is {inner} and radius is {radius}"
            )));
        }
        if !metric.larger_is_better() && inner >= radius {
            return Err(Failure::invalid(format!(
                "range_filter must less than radius except IP/BM25/COSINE, but range_filter is {inner} and radius is {radius}"
            )));
        }
    }
    if radius.is_none() && inner.is_some() {
        return Err(Failure::invalid("range_filter needs a radius"));
    }
    let internal = |value: f64| {
        let value = narrow(value);
        if metric.larger_is_better() { value } else { restored(value) }
    };
    Ok(Bounds { above: radius.map(internal), at_most: inner.map(internal) })
}

/// The partitions that a request may read.
#[derive(Clone, Debug, Default)]
pub struct Readable {
    /// Those named or loaded; `None` for all.
    pub partitions: Option<Vec<i64>>,
    /// How a partition key spreads rows, if there is one.
    pub by_key: Option<ByKey>,
}

/// Selections of rows, one per distinct scope of a request's legs.
pub struct Selections {
    selections: Vec<Selection>,
    of_leg: Vec<usize>,
}

impl Selections {
    /// Compiles the filters of the legs and selects their rows; equal scopes are shared.
    ///
    /// # Errors
    /// Code 1100 for a filter that does not parse.
    pub fn new(
        view: &ReadView,
        schema: &Schema,
        legs: &[Leg],
        readable: &Readable,
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        let mut scopes: Vec<&LegScope> = Vec::new();
        let of_leg = legs
            .iter()
            .map(|leg| {
                scopes.iter().position(|scope| **scope == leg.scope).unwrap_or_else(|| {
                    scopes.push(&leg.scope);
                    scopes.len() - 1
                })
            })
            .collect();
        let selections = scopes
            .into_iter()
            .map(|scope| select(view, schema, scope, readable, cancel))
            .collect::<Result<_, _>>()?;
        Ok(Self { selections, of_leg })
    }

    /// The rows that a leg may find.
    pub fn of(&self, leg: usize) -> &Selection {
        &self.selections[self.of_leg[leg]]
    }
}

/// The rows that a scope lets through.
///
/// # Errors
/// Code 1100 for a filter that does not parse or cannot be evaluated.
pub fn select(
    view: &ReadView,
    schema: &Schema,
    scope: &LegScope,
    readable: &Readable,
    cancel: &Cancel,
) -> Result<Selection, Failure> {
    let predicate = scope.filter.compile(schema)?;
    // Only one of the two is ever there: a partition key admits no names of partitions.
    let routed = readable.by_key.as_ref().zip(predicate.as_ref());
    let narrowed = routed.and_then(|(route, predicate)| route.narrow(predicate));
    let partitions = match (&readable.partitions, &narrowed) {
        (None, narrowed) => narrowed.as_deref(),
        (partitions, _) => partitions.as_deref(),
    };
    let scope =
        Scope { partitions, filter: predicate.as_ref(), ignore_growing: scope.ignore_growing };
    Ok(view.select(&scope, cancel)?)
}

/// Hits that one request may have in flight, over all queries and legs: some 50 MiB for each piece
/// of the data that is searched at once.
const MAX_ENTRIES: usize = 4 << 20;

/// Runs all legs, in parallel; per leg and query the hits, best first.
///
/// # Errors
/// Whatever the search reports: a wrong width, a cancelled request, a damaged file.
pub fn run(
    view: &ReadView,
    legs: &Arc<Vec<Leg>>,
    rows: Vec<QueryRows>,
    selections: Selections,
    cancel: &Cancel,
) -> Result<Vec<Vec<Vec<Found>>>, Failure> {
    let entries = |(at, (leg, rows)): (usize, (&Leg, &QueryRows))| {
        rows.len().saturating_mul(leg.params.k.min(selections.of(at).rows()))
    };
    let entries = legs.iter().zip(&rows).enumerate().map(entries).fold(0, usize::saturating_add);
    if entries > MAX_ENTRIES {
        return Err(Failure::invalid(format!(
            "number of result entries is too large: {entries} hits (queries x limit, of all searches) are more than {MAX_ENTRIES}; ask for fewer, or in several requests"
        )));
    }
    let (view, legs, cancel) = (view.clone(), Arc::clone(legs), cancel.clone());
    share_out_owned(legs.len(), move |at| {
        run_one(&view, &legs[at], &rows[at], legs[at].params, selections.of(at), &cancel)
    })
}

/// Runs one leg with the given parameters.
///
/// # Errors
/// As [`run`].
pub fn run_one(
    view: &ReadView,
    leg: &Leg,
    rows: &QueryRows,
    params: SearchParams,
    selection: &Selection,
    cancel: &Cancel,
) -> Result<Vec<Vec<Found>>, Failure> {
    let queries = rows.queries();
    let ann = AnnQuery {
        field: &leg.field.name,
        metric: leg.metric,
        queries: &queries,
        params,
        exact: leg.exact,
    };
    Ok(view.search(selection, &ann, cancel)?)
}

/// Runs the legs of a grouping fusion: each gives the hits of its best groups, best first.
///
/// # Errors
/// As [`run`].
pub fn run_all_grouped(
    view: &ReadView,
    legs: &[Leg],
    rows: &[QueryRows],
    selections: &Selections,
    grouping: &Grouping,
    cancel: &Cancel,
) -> Result<Vec<Vec<Vec<Found>>>, Failure> {
    share_out(legs.len(), |at| {
        let (leg, rows) = (&legs[at], &rows[at]);
        let page = Page { offset: 0, limit: leg.params.k, round_decimal: -1 };
        let hits = run_grouped(view, leg, rows, selections.of(at), grouping, page, cancel)?;
        let best_first = |hits: Vec<(RowAddr, f32)>| {
            let mut hits: Vec<Found> =
                hits.into_iter().map(|(addr, score)| Found { addr, score }).collect();
            hits.sort_by(|a, b| b.score.total_cmp(&a.score));
            hits
        };
        Ok(hits.into_iter().map(best_first).collect())
    })
}

/// How much further a grouping search looks when its groups are not full yet.
const WIDEN: usize = 4;

/// A grouping search: looks further until the groups of the page are found, or all rows seen.
/// Per query the hits of the page's groups.
///
/// # Errors
/// As [`run`].
pub fn run_grouped(
    view: &ReadView,
    leg: &Leg,
    rows: &QueryRows,
    selection: &Selection,
    grouping: &Grouping,
    page: Page,
    cancel: &Cancel,
) -> Result<Vec<Vec<(RowAddr, f32)>>, Failure> {
    // Beyond this no request looks; groups that are not full by then stay short.
    let all = selection.rows().min(MAX_ENTRIES / rows.len().max(1));
    // Most groups hold several rows: begin with some more than the groups can hold at best.
    let mut k = page.end().saturating_mul(grouping.size).saturating_mul(2).clamp(1, all.max(1));
    let mut found = run_one(view, leg, rows, SearchParams { k, ..leg.params }, selection, cancel)?;
    let mut results = vec![None; found.len()];
    loop {
        for (hits, result) in found.iter().zip(&mut results) {
            if result.is_some() {
                continue;
            }
            let addrs: Vec<RowAddr> = hits.iter().map(|hit| hit.addr).collect();
            let batch = view.take(&addrs, &[grouping.field.as_str()])?;
            let values = group::keys(batch.column(0));
            // Hits are ranked with ties by key, so their rank numbers them as candidates.
            let ranked: Vec<(Candidate, f32)> =
                (0..).zip(hits.iter().map(|hit| hit.score)).collect();
            let value = |candidate: Candidate| values[candidate as usize].clone();
            let exhausted = hits.len() < k || k >= all;
            if exhausted || grouping.is_filled(&ranked, value, page.end()) {
                let kept = grouping.apply(&ranked, value, page.offset..page.end(), false);
                let addr =
                    |(candidate, score): (Candidate, f32)| (addrs[candidate as usize], score);
                *result = Some(kept.into_iter().map(addr).collect());
            }
        }
        if results.iter().all(Option::is_some) {
            return Ok(results.into_iter().flatten().collect());
        }
        k = k.saturating_mul(WIDEN).min(all);
        found = run_one(view, leg, rows, SearchParams { k, ..leg.params }, selection, cancel)?;
    }
}

fn index(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use elanus_proto::common::KeyValuePair;

    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| KeyValuePair { key: (*key).into(), value: (*value).into() })
            .collect();
        Params::parse(&pairs).unwrap()
    }

    fn page(pairs: &[(&str, &str)]) -> Result<Page, Failure> {
        Page::parse(&params(pairs), "topk", "search_params", &Limits::default())
    }

    #[test]
    fn pages_out_of_range_are_refused_with_milvus_texts() {
        let good = page(&[("topk", "10"), ("offset", "5"), ("round_decimal", "3")]).unwrap();
        assert_eq!(good, Page { offset: 5, limit: 10, round_decimal: 3 });
        let reason = |pairs: &[(&str, &str)]| page(pairs).unwrap_err().reason().to_owned();
        assert!(reason(&[]).contains("topk not found in search_params"));
        assert!(reason(&[("topk", "16385")]).starts_with(
            "topk [16385] is invalid, it should be in range [1, 16384], but got 16385"
        ));
        assert!(reason(&[("topk", "0")]).contains("should be in range [1, 16384]"));
        assert!(reason(&[("topk", "1"), ("offset", "-1")]).contains("offset [-1] is invalid"));
        assert!(
            reason(&[("topk", "10000"), ("offset", "10000")])
                .contains("(offset+limit) should be in range [1, 16384], but got 20000")
        );
        assert!(reason(&[("topk", "1"), ("round_decimal", "7")]).contains("round_decimal [7]"));
    }

    #[test]
    fn each_index_type_says_in_its_own_words_how_hard_to_look() {
        let field = Field {
            id: 100,
            name: "f".to_owned(),
            description: String::new(),
            data_type: elanus_storage::schema::DataType::FloatVector { dim: 4 },
            nullable: false,
            default: None,
            primary_key: false,
            auto_id: false,
            partition_key: false,
            clustering_key: false,
            dynamic: false,
            function_output: false,
            type_params: Vec::new(),
            column: None,
        };
        let effort = |kind: &str, pairs: &[(&str, &str)]| {
            let index = [("index_type".to_owned(), kind.to_owned())];
            Effort::parse(&IndexSpec::parse(&index, &field).unwrap(), &params(pairs))
        };
        let beam = |beam| Effort { beam: Some(beam), exact: false };
        assert_eq!(effort("HNSW", &[("ef", "100")]).unwrap(), beam(100));
        assert_eq!(effort("HNSW", &[("nprobe", "100")]).unwrap(), Effort::default());
        assert_eq!(effort("IVF_FLAT", &[("nprobe", "16")]).unwrap(), beam(128));
        let all = Effort { beam: Some(1024), exact: true };
        assert_eq!(effort("IVF_SQ8", &[("nprobe", "128")]).unwrap(), all);
        assert_eq!(effort("SCANN", &[("nprobe", "8"), ("reorder_k", "90")]).unwrap(), beam(90));
        assert_eq!(effort("DISKANN", &[("search_list", "30")]).unwrap(), beam(30));
        assert_eq!(effort("AUTOINDEX", &[("level", "2")]).unwrap(), beam(128));
        assert_eq!(effort("FLAT", &[]).unwrap(), Effort::default());
        assert!(effort("HNSW", &[("ef", "0")]).unwrap_err().reason().contains("ef [0] is invalid"));
    }

    #[test]
    fn ranges_become_bounds_on_internal_scores() {
        let range = params(&[("params", r#"{"radius": 10, "range_filter": "2.5"}"#)]);
        let l2 = bounds(Metric::L2, &range).unwrap();
        assert_eq!(l2, Bounds { above: Some(-10.0), at_most: Some(-2.5) });
        assert!(
            bounds(Metric::Ip, &range)
                .unwrap_err()
                .reason()
                .contains("range_filter must more than radius")
        );
        let range = params(&[("radius", "0.1"), ("range_filter", "0.9")]);
        assert_eq!(
            bounds(Metric::Cosine, &range).unwrap(),
            Bounds { above: Some(0.1), at_most: Some(0.9) }
        );
        assert!(
            bounds(Metric::L2, &range)
                .unwrap_err()
                .reason()
                .contains("range_filter must less than radius")
        );
        assert_eq!(bounds(Metric::L2, &params(&[])).unwrap(), Bounds::default());
    }
}
