//! Opening a native store, and what is found then.
//!
//! Whether it was closed or not, the same is done; a crash only leaves more of it to do:
//!
//! 1. Snapshots that were not durable yet stay if the engine still has them whole: always if the system has not been
//!    started anew since, else if the engine says so ([`Engine::whole_when_kept`]). The others are dropped, by name.
//! 2. What the engine was making when the crash came is removed, and so is what it was to delete.
//! 3. A switch that was decided is completed.
//! 4. What the engine has and the catalog does not know stays, and is told of; so is what the catalog knows and the
//!    engine has not. Numbers go on above all that is there.
//!
//! Each step can be repeated: a crash during recovery is followed by recovery.

use std::sync::Arc;

use super::catalog::{Catalog, Kept as CatalogKept};
use super::core::{Core, open_live};
use super::engine::{Engine, HeadId, Kept};
use super::site::Site;
use super::switch;
use crate::chunk::Recovery;
use crate::error::{Error, Result};
use crate::types::EpochId;

/// Opens a store whose catalog was read. The store's lock is held.
pub(crate) fn open(
    site: Site,
    engine: Box<dyn Engine>,
    file: Box<dyn CatalogKept>,
    mut catalog: Catalog,
) -> Result<(Arc<Core>, Recovery)> {
    let mut recovery = Recovery { clean: catalog.clean, ..Recovery::default() };
    let kept = engine.kept()?;
    let boot = this_boot();
    if !catalog.clean {
        let same_run = !boot.is_empty() && boot == catalog.boot;
        drop_unsure(&mut catalog, &kept, same_run || engine.whole_when_kept(), &mut recovery);
    }
    catalog.doom_making();
    let findings = compare(&mut catalog, &kept);
    for finding in &findings {
        tracing::warn!("{}: {finding}", site.store.display());
    }
    if !kept.heads.contains(&catalog.live) && catalog.head().from.is_none() {
        let detail = format!("the live head, number {}, is not there any more", catalog.live.0);
        return Err(Error::Damaged { what: "native store", detail });
    }
    (catalog.clean, catalog.boot) = (false, boot);
    // Before anything is done: what it does belongs to this run.
    file.replace(&catalog.bytes()?)?;
    switch::finish(&*engine, &site, &mut catalog)?;
    file.replace(&catalog.bytes()?)?;
    switch::clear_aside(&site)?;
    let live = open_live(&*engine, &catalog)?;
    let core = Core::new(site, engine, file, catalog, live);
    *core.findings.lock() = findings;
    Ok((Arc::new(core), recovery))
}

/// Drops the snapshots that had not become durable and may not be whole.
fn drop_unsure(catalog: &mut Catalog, kept: &Kept, whole: bool, recovery: &mut Recovery) {
    let unsure: Vec<EpochId> = catalog
        .epochs
        .iter()
        .filter(|(_, row)| row.snapshot.as_ref().is_some_and(|snapshot| !snapshot.durable))
        .map(|(&epoch, _)| epoch)
        .collect();
    for epoch in unsure {
        if whole && kept.epochs.contains(&epoch) {
            continue;
        }
        if let Some(row) = catalog.snapshot(epoch) {
            tracing::warn!("the snapshot of height {} was not durable yet and is gone", row.height);
            recovery.dropped.push(row.height);
        }
        catalog.doom_epoch(epoch);
    }
    recovery.dropped.sort_unstable();
}

/// Compares the catalog with what the engine has. Tells what a person should know.
fn compare(catalog: &mut Catalog, kept: &Kept) -> Vec<String> {
    catalog.doomed.epochs.retain(|epoch| kept.epochs.contains(epoch));
    catalog.doomed.heads.retain(|head| kept.heads.contains(head));
    let mut findings = Vec::new();
    for epoch in &kept.epochs {
        catalog.next_epoch = catalog.next_epoch.max(EpochId(epoch.0 + 1));
        if !catalog.epochs.contains_key(epoch) && !catalog.doomed.epochs.contains(epoch) {
            findings.push(format!(
                "there is a snapshot, number {epoch}, that the catalog does not know; it is left alone"
            ));
        }
    }
    for head in &kept.heads {
        catalog.next_head = catalog.next_head.max(HeadId(head.0 + 1));
        if !catalog.heads.contains_key(head) && !catalog.doomed.heads.contains(head) {
            findings.push(format!(
                "there is a head, number {}, that the catalog does not know; it is left alone",
                head.0
            ));
        }
    }
    for (epoch, row) in &catalog.epochs {
        if let Some(row) = row.snapshot.as_ref().filter(|_| !kept.epochs.contains(epoch)) {
            findings.push(format!(
                "the snapshot of height {} (number {epoch}) was removed by somebody else; only its name is left",
                row.height
            ));
        }
    }
    findings
}

/// What names this run of the system, from its start on.
fn this_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}
