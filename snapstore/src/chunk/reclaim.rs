//! Reclaim (to come).

use super::core::Core;
use crate::error::Result;

impl Core {
    pub(crate) fn reclaim(&self, _stop: impl Fn() -> bool) -> Result<()> {
        Ok(())
    }

    pub(crate) fn delete(
        &self,
        _heights: &[crate::Height],
        _dry_run: bool,
    ) -> Result<crate::backend::DeleteReport> {
        Ok(crate::backend::DeleteReport::default())
    }

    pub(crate) fn drop_abandoned(&self, _dry_run: bool) -> Result<crate::backend::DeleteReport> {
        Ok(crate::backend::DeleteReport::default())
    }

    pub(crate) fn exclusive_bytes(&self, _epoch: crate::EpochId) -> Result<u64> {
        Ok(0)
    }

    pub(crate) fn usage(&self) -> Result<crate::backend::Usage> {
        Ok(crate::backend::Usage::default())
    }
}
