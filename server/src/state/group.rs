//! Ending all leases of a pipeline at once.

use fencepost::Lsn;
use fencepost::log::v1::GroupFenced;

use super::lease::Standing;
use super::{State, entry};

impl State {
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
