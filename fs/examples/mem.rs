//! Mounts the tests' backend in memory, to try programs on the file system without a store:
//! `cargo run --example mem -- DIR [through|passthrough]`, until `umount DIR`.

#[path = "../tests/common/mem/mod.rs"]
#[allow(dead_code)]
mod mem;

use std::sync::Arc;

use tmfs_fs::{Cache, MountOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().ok_or("usage: mem DIR [through|passthrough]")?;
    let how = args.next();
    let passthrough = how.as_deref() == Some("passthrough".as_ref());
    let mem = if passthrough { mem::Mem::on_disk() } else { mem::Mem::new() };
    let options = MountOptions {
        mountpoint: dir.clone().into(),
        cache: if how.as_deref() == Some("through".as_ref()) { Cache::Through } else { Cache::Writeback },
        passthrough: true,
        show_heights: false,
        control_path: "none".into(),
        data_dir: dir.into(),
        store: "memory".into(),
        threads: None,
        owner_snapshots: false,
        slow_request: tmfs_fs::SLOW_REQUEST,
    };
    tmfs_fs::mount(Arc::new(mem), options)?.wait()?;
    Ok(())
}
