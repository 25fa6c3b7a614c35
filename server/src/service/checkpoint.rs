//! Reading progress. Each read takes its turn among the commits and is answered when all it saw is durable.

use fencepost::v1::checkpoint_service_server::CheckpointService;
use fencepost::v1::{
    BranchInfo, GetCheckpointRequest, GetCheckpointResponse, GetHeadRequest, GetHeadResponse, LeaseInfo,
    ListBranchesRequest, ListBranchesResponse, ListCheckpointsRequest, ListCheckpointsResponse, ListPipelinesRequest,
    ListPipelinesResponse, PipelineInfo, StoredCheckpoint,
};
use fencepost::{Lsn, Reason};
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Backend, facts, history, shape, trace};
use crate::error::Refusal;
use crate::sequencer::View;
use crate::state::{Branch, Pipeline, Staged, check_name, check_pipeline};

/// How many pipelines and branches are looked at in one read: commits wait meanwhile.
const LOOKED_AT_MAX: usize = 2_000;

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl CheckpointService for Service {
    async fn get_head(&self, request: Request<GetHeadRequest>) -> Result<Response<GetHeadResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let GetHeadRequest { cluster, pipeline, branch, without_state } = request.into_inner();
        check_branch(&pipeline, &branch)?;
        let (name, of) = (branch.clone(), pipeline.clone());
        let (lsn, seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                let head = known_branch(view, &of, &name)?.head();
                head.map(|head| head.lsn)
                    .ok_or_else(|| missing(&format!("branch '{name}' of '{of}' has no checkpoint")))
            })
            .await
            .map_err(status)?;
        let head = facts::read_checkpoint(log, lsn, pipeline, branch, without_state).await?;
        Ok(Response::new(GetHeadResponse { header: Some(sequencer.header(seen)), head: Some(head) }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let GetCheckpointRequest { cluster, pipeline, branch, sequence, without_state } = request.into_inner();
        check_branch(&pipeline, &branch)?;
        let place = history::place(&self.0, &pipeline, &branch, sequence).await.map_err(status)?;
        let (name, of) = (branch.clone(), pipeline.clone());
        let (lsn, seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                view.state.check_place(&of, &name, sequence, place)
            })
            .await
            .map_err(status)?;
        let checkpoint = facts::read_checkpoint(log, lsn, pipeline, branch, without_state).await?;
        let header = Some(sequencer.header(seen));
        Ok(Response::new(GetCheckpointResponse { header, checkpoint: Some(checkpoint) }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let ListCheckpointsRequest { cluster, pipeline, branch, before_sequence, page_size, trace_id } =
            request.into_inner();
        check_branch(&pipeline, &branch)?;
        let page_size = shape::page_size(page_size).map_err(status)?;
        // A page looks through as many checkpoints as it has room for, and shows those of the trace.
        let traced = trace::asked(&trace_id).map_err(status)?;
        let (name, of) = (branch.clone(), pipeline.clone());
        let kept = sequencer.read(move |view| {
            view.state.check_cluster(cluster.as_ref())?;
            // One more than the page, to know whether there is another page.
            view.state.kept_before(&of, &name, before_sequence, page_size + 1)
        });
        let (mut sequences, _) = kept.await.map_err(status)?;
        let is_more = sequences.len() > page_size;
        sequences.truncate(page_size);
        let next_before_sequence = sequences.last().copied().filter(|_| is_more).unwrap_or(0);
        let places = history::places(&self.0, &pipeline, &branch, sequences).await.map_err(status)?;
        let (name, of) = (branch.clone(), pipeline.clone());
        let (places, seen) = sequencer
            .read(move |view| {
                let is_kept = |(sequence, lsn): &_| view.state.check_place(&of, &name, *sequence, Some(*lsn)).is_ok();
                Ok(places.into_iter().filter(is_kept).collect::<Vec<(u64, Lsn)>>())
            })
            .await
            .map_err(status)?;
        let log = log.clone();
        let checkpoints = facts::blocking(move || {
            let row = |(sequence, lsn): (u64, Lsn)| {
                facts::row(facts::checkpoint(&log, lsn, &pipeline, &branch, true), |unreadable| {
                    let (pipeline, branch, lsn) = (pipeline.clone(), branch.clone(), lsn.as_u64());
                    StoredCheckpoint { pipeline, branch, sequence, lsn, unreadable, ..StoredCheckpoint::default() }
                })
            };
            Ok(places.into_iter().filter_map(row).filter(|row| trace::is_of(traced, row)).collect())
        })
        .await?;
        let header = Some(sequencer.header(seen));
        Ok(Response::new(ListCheckpointsResponse { header, checkpoints, next_before_sequence }))
    }

    async fn list_pipelines(
        &self,
        request: Request<ListPipelinesRequest>,
    ) -> Result<Response<ListPipelinesResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let ListPipelinesRequest { cluster, prefix, page_size, page_token } = request.into_inner();
        let page_size = shape::page_size(page_size).map_err(status)?;
        let (pipelines, seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                let matching = view.state.pipelines_after(&page_token, &prefix);
                Ok(matching.take(page_size).map(|(name, pipeline)| pipeline_info(name, pipeline)).collect::<Vec<_>>())
            })
            .await
            .map_err(status)?;
        let next_page_token = match pipelines.last() {
            Some(last) if pipelines.len() == page_size => last.pipeline.clone(),
            _ => String::new(),
        };
        Ok(Response::new(ListPipelinesResponse { header: Some(sequencer.header(seen)), pipelines, next_page_token }))
    }

    async fn list_branches(
        &self,
        request: Request<ListBranchesRequest>,
    ) -> Result<Response<ListBranchesResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        let page_size = shape::page_size(request.page_size).map_err(status)?;
        if !request.pipeline.is_empty() {
            check_pipeline("pipeline", &request.pipeline).map_err(status)?;
        }
        let (mut branches, mut next_page_token) = (Vec::new(), request.page_token.clone());
        let seen = loop {
            let (request, after, wanted) = (request.clone(), next_page_token, page_size - branches.len());
            let part = sequencer.read(move |view| some_branches(view, &request, &after, wanted));
            let ((found, next), seen) = part.await.map_err(status)?;
            branches.extend(found);
            next_page_token = next;
            if branches.len() == page_size || next_page_token.is_empty() {
                break seen;
            }
        };
        Ok(Response::new(ListBranchesResponse { header: Some(sequencer.header(seen)), branches, next_page_token }))
    }
}

fn check_branch(pipeline: &str, branch: &str) -> Result<(), Status> {
    check_pipeline("pipeline", pipeline).and_then(|()| check_name("branch", branch)).map_err(status)
}

fn known_branch<'a>(view: &'a View, pipeline: &str, branch: &str) -> Result<&'a Branch, Refusal> {
    let known = view.state.pipeline(pipeline);
    if known.is_none() {
        return Err(missing(&format!("there is no pipeline '{pipeline}'")));
    }
    let branch_known = view.state.branch(pipeline, branch);
    branch_known.ok_or_else(|| missing(&format!("pipeline '{pipeline}' has no branch '{branch}'")))
}

fn missing(what: &str) -> Refusal {
    Refusal::new(
        Reason::StateMissing,
        format!("{what}; 'fencepost pipelines' and 'fencepost branches' list what is there"),
    )
}

fn pipeline_info(name: &str, pipeline: &Pipeline) -> PipelineInfo {
    let (branches, leases) = pipeline.counts();
    let (commits, last_committed_at_ms) = pipeline.commits();
    let dead_letters = pipeline.dead_letters();
    PipelineInfo { pipeline: name.to_owned(), branches, leases, commits, last_committed_at_ms, dead_letters }
}

/// The next branches, at most `wanted`, and where to go on if these may not be all. A place is the last pipeline and branch
/// that were looked at, with a space between.
fn some_branches(
    view: &View,
    request: &ListBranchesRequest,
    after: &str,
    wanted: usize,
) -> Result<(Vec<BranchInfo>, String), Refusal> {
    view.state.check_cluster(request.cluster.as_ref())?;
    let (last_pipeline, last_branch) = after.split_once(' ').unwrap_or_default();
    let only = Some(request.pipeline.as_str()).filter(|name| !name.is_empty());
    let begun = only.unwrap_or(last_pipeline);
    let first = view.state.pipeline(begun).map(|pipeline| (begun, pipeline, last_branch));
    if only.is_some() && first.is_none() {
        return Err(missing(&format!("there is no pipeline '{begun}'")));
    }
    let others = view.state.pipelines_after(last_pipeline, "").take_while(|_| only.is_none());
    let pipelines = first.into_iter().chain(others.map(|(name, pipeline)| (name, pipeline, "")));
    let looks = pipelines.flat_map(|(name, pipeline, after)| {
        // Where nobody holds anything one look is enough.
        let is_worth_it = !request.leased_only || pipeline.counts().1 > 0;
        let branches = is_worth_it.then(|| pipeline.branches_after(after)).into_iter().flatten();
        std::iter::once((name, after, None)).chain(branches.map(move |(branch, it)| (name, branch, Some(it))))
    });
    let mut found = Vec::new();
    for (looked_at, (name, branch_name, branch)) in looks.enumerate() {
        let branch = branch.filter(|branch| !request.leased_only || branch.lease().is_some());
        found.extend(branch.map(|branch| branch_info(view, name, branch_name, branch)));
        if found.len() == wanted || looked_at == LOOKED_AT_MAX {
            return Ok((found, format!("{name} {branch_name}")));
        }
    }
    Ok((found, String::new()))
}

fn branch_info(view: &View, pipeline: &str, name: &str, branch: &Branch) -> BranchInfo {
    let head = branch.head();
    let dead_letters = view.state.pipeline(pipeline).map_or(0, |of| of.dead_letters_of(name));
    BranchInfo {
        pipeline: pipeline.to_owned(),
        branch: name.to_owned(),
        lease: branch.lease().map(|grant| LeaseInfo {
            token: grant.token.as_u64(),
            holder: grant.holder.to_string(),
            ttl_ms: grant.ttl().as_millis() as u64,
            remaining_ms: (grant.ttl() + grant.lock_delay()).saturating_sub(view.silent(grant.token)).as_millis()
                as u64,
            granted_at_ms: grant.granted_at_ms,
        }),
        head_sequence: head.map_or(0, |head| head.sequence),
        head_lsn: head.map_or(0, |head| head.lsn.as_u64()),
        head_committed_at_ms: head.map_or(0, |head| head.committed_at_ms),
        last_token: branch.last_grant().map_or(0, |grant| grant.token.as_u64()),
        staged: branch.staged().map(Staged::told),
        health: view.health(pipeline, name).cloned(),
        dead_letters,
    }
}
