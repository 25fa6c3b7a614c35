//! Ending all leases of a pipeline at once.

use fencepost::Lsn;
use fencepost::log::v1::GroupFenced;
use fencepost::v1::FenceGroupRequest;

use super::lease::Standing;
use super::{Branch, Grant, Pipeline, State, entry};
use crate::error::Refusal;

impl Pipeline {
    /// Grants in force, in the order of their branches.
    pub fn leases(&self) -> impl Iterator<Item = (&str, &Grant)> {
        self.branches.iter().filter_map(|(name, branch)| Some((&**name, Branch::lease(branch)?)))
    }
}

impl State {
    /// Judges the end of all leases of a pipeline, its shape already checked.
    pub fn evaluate_fence_group(&self, request: &FenceGroupRequest) -> Result<GroupFenced, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let FenceGroupRequest { pipeline: of, actor, reason, .. } = request;
        self.check_ready(of)?;
        let (_, leases) = self.known_pipeline(of)?.counts();
        let token = self.next_token()?.as_u64();
        Ok(GroupFenced { pipeline: of.clone(), token, leases, actor: actor.clone(), reason: reason.clone() })
    }

    pub(super) fn apply_group_fenced(&mut self, lsn: Lsn, fact: &GroupFenced) -> Result<(), String> {
        let token = self.mint(fact.token)?;
        let pipeline = entry(&mut self.pipelines, &fact.pipeline);
        for branch in pipeline.branches.values_mut() {
            branch.leave_barrier();
            if let Some(grant) = branch.grant.as_deref_mut().filter(|grant| grant.is_in_force()) {
                grant.standing = Standing::Fenced;
            }
        }
        self.leases -= pipeline.leases;
        pipeline.leases = 0;
        pipeline.last_fenced = lsn;
        self.last_token = token;
        Ok(())
    }
}
