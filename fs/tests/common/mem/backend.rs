//! Snapshots and switches.

use std::path::PathBuf;

use super::*;

impl World {
    fn find(&self, query: HeightQuery) -> Result<&Snapshot> {
        let all = &self.snapshots;
        match query {
            HeightQuery::Newest => all.last().ok_or(Error::NoSnapshots),
            HeightQuery::Exact(height) => all
                .iter()
                .find(|s| s.info.height == height)
                .ok_or(Error::NoSuchHeight { height, nearest: None }),
            HeightQuery::AtOrBelow(height) => all
                .iter()
                .rfind(|s| s.info.height <= height)
                .ok_or(Error::NothingBelow { height, oldest: None }),
        }
    }

    fn switch(&mut self, state: State) -> State {
        self.serial += 1;
        self.changed = false;
        std::mem::replace(&mut self.live, state)
    }
}

fn view(snapshot: &Snapshot) -> View {
    View {
        epoch: snapshot.info.epoch,
        height: snapshot.info.height,
        time: snapshot.info.time,
        tree: Arc::new(Frozen(Arc::new(snapshot.state.clone()))),
    }
}

impl Backend for Mem {
    fn kind(&self) -> BackendKind {
        BackendKind::External
    }

    fn passthrough(&self) -> bool {
        self.0.lock().on_disk
    }

    fn head(&self) -> Arc<dyn Head> {
        Arc::new(Live { world: self.0.clone(), serial: self.head_serial() })
    }

    fn head_serial(&self) -> u64 {
        self.0.lock().serial
    }

    fn cut(
        &self,
        height: Height,
        options: &SnapshotOptions,
        gate: &dyn Gate,
    ) -> Result<Option<SnapshotInfo>> {
        let mut w = self.0.lock();
        if let Some(newest) = w.snapshots.last() {
            if newest.info.height == height && !w.changed {
                return Ok(Some(newest.info.clone()));
            }
            if w.find(HeightQuery::Exact(height)).is_ok() {
                return Err(Error::HeightExists { height });
            }
            if newest.info.height > height {
                return Err(Error::HeightNotNewer { height, newest: newest.info.height });
            }
        }
        let info = SnapshotInfo {
            height,
            time: jiff::Timestamp::now(),
            durable: true,
            held: options.hold,
            hash: options.hash.clone(),
            labels: options.labels.clone(),
            referenced_bytes: 0,
            exclusive_bytes: 0,
            epoch: EpochId(w.epoch),
            root: None,
        };
        let passed = gate.pass(&mut || {
            w.epoch += 1;
            w.changed = false;
            let state = w.live.copy();
            w.snapshots.push(Snapshot { info: info.clone(), state });
        });
        Ok(passed.then_some(info))
    }

    fn wait_durable(&self, _epoch: EpochId) -> Result<()> {
        Ok(())
    }

    fn snapshots(&self, _space: bool) -> Result<Vec<SnapshotInfo>> {
        Ok(self.0.lock().snapshots.iter().map(|s| s.info.clone()).collect())
    }

    fn heights(&self) -> Vec<Height> {
        self.0.lock().snapshots.iter().map(|s| s.info.height).collect()
    }

    fn find(&self, query: HeightQuery) -> Result<SnapshotInfo> {
        Ok(self.0.lock().find(query)?.info.clone())
    }

    fn view(&self, query: HeightQuery) -> Result<View> {
        Ok(view(self.0.lock().find(query)?))
    }

    fn view_at(&self, time: jiff::Timestamp) -> Result<View> {
        let w = self.0.lock();
        w.snapshots.iter().rfind(|s| s.info.time <= time).map(view).ok_or(Error::NoSnapshotAt { time })
    }

    fn rollback(&self, to: HeightQuery, _preserve: &[PathBuf], dry_run: bool) -> Result<SwitchReport> {
        let mut w = self.0.lock();
        let target = w.find(to)?.clone();
        let state = if dry_run { target.state } else { target.state.copy() };
        let height = target.info.height;
        let hidden = w.snapshots.iter().map(|s| s.info.height).filter(|h| *h > height).collect();
        if !dry_run {
            let kept = w.snapshots.iter().filter(|s| s.info.height <= height).cloned().collect();
            let snapshots = std::mem::replace(&mut w.snapshots, kept);
            let state = w.switch(state);
            w.abandoned.push(Abandoned { state, snapshots });
        }
        Ok(SwitchReport {
            height: Some(height),
            hidden_heights: hidden,
            preserved: Vec::new(),
            changed: Vec::new(),
        })
    }

    fn undo_rollback(&self, dry_run: bool) -> Result<SwitchReport> {
        let mut w = self.0.lock();
        if w.abandoned.is_empty() {
            return Err(Error::NothingToUndo);
        }
        if !dry_run {
            let back = w.abandoned.pop().unwrap();
            w.switch(back.state);
            w.snapshots = back.snapshots;
        }
        let report =
            SwitchReport { height: None, hidden_heights: vec![], preserved: vec![], changed: vec![] };
        Ok(report)
    }

    fn delete(&self, heights: &[Height], dry_run: bool) -> Result<DeleteReport> {
        let mut w = self.0.lock();
        for height in heights {
            if w.find(HeightQuery::Exact(*height))?.info.held {
                return Err(Error::Held { height: *height });
            }
        }
        if !dry_run {
            w.snapshots.retain(|s| !heights.contains(&s.info.height));
        }
        Ok(DeleteReport { heights: heights.to_vec(), freed_bytes: 0 })
    }

    fn drop_abandoned(&self, dry_run: bool) -> Result<DeleteReport> {
        if !dry_run {
            self.0.lock().abandoned.clear();
        }
        Ok(DeleteReport::default())
    }

    fn set_held(&self, height: Height, held: bool) -> Result<SnapshotInfo> {
        let mut w = self.0.lock();
        w.find(HeightQuery::Exact(height))?;
        let snapshot = w.snapshots.iter_mut().find(|s| s.info.height == height).unwrap();
        snapshot.info.held = held;
        Ok(snapshot.info.clone())
    }

    fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn verify(&self, _height: Option<Height>, _progress: &dyn Progress) -> Result<VerifyReport> {
        Ok(VerifyReport::default())
    }

    fn last_error(&self) -> Option<String> {
        None
    }

    fn close(&self) -> Result<()> {
        self.0.lock().closed = true;
        Ok(())
    }
}
