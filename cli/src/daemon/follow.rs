//! The follower in the daemon: it begins with the mount, shows in its status, and lets go of it before it is unmounted.

use std::sync::Arc;

use snapstore::control::{Failure, Reply, Request, Verbs};
use tmfs_follow::clock::SystemClock;
use tmfs_follow::{Follower, keeper};
use tmfs_fs::Mounted;

use super::Plan;

/// A mount and, if there is one, its follower: what the control socket and the signals ask.
pub struct Followed {
    mounted: Arc<Mounted>,
    follower: Option<Follower>,
}

impl Followed {
    /// Begins to follow, if the plan says so.
    pub fn begin(mounted: Arc<Mounted>, plan: &Plan) -> Followed {
        let follower = plan.extras.follow.as_ref().and_then(|follow| {
            let keeper = keeper::Mounted { verbs: mounted.clone(), backend: mounted.backend().clone() };
            let clock = Arc::new(SystemClock::default());
            match Follower::start(follow, &plan.data_dir, Box::new(keeper), clock) {
                Ok(follower) => Some(follower),
                Err(error) => {
                    mounted.add_limits(vec![format!("nothing is followed: no thread for it: {error}")]);
                    None
                }
            }
        });
        Followed { mounted, follower }
    }

    /// Follows nothing any more.
    pub fn end(&self) {
        if let Some(follower) = &self.follower {
            follower.end();
        }
    }

    /// Unmounts with nobody of ours in the way.
    fn unmount(&self, follower: &Follower, request: Request) -> Result<Reply, Failure> {
        follower.pause();
        let answer = self.mounted.call(request);
        if answer.is_err() {
            follower.resume();
        }
        answer
    }
}

impl Verbs for Followed {
    fn call(&self, request: Request) -> Result<Reply, Failure> {
        let Some(follower) = &self.follower else { return self.mounted.call(request) };
        if request == Request::Unmount {
            return self.unmount(follower, request);
        }
        let mut reply = self.mounted.call(request)?;
        if let Reply::Status(status) = &mut reply {
            let following = follower.following();
            status.follower = Some(following.to_string());
            status.following = Some(Box::new(following));
        }
        Ok(reply)
    }
}
