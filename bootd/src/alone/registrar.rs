//! Writes down which machine serves as what: the part of control in a bootd that has none.
//!
//! One thread owns the desired state and makes each new generation of it. Orders that wait while one
//! is written go into the next together, so that a thousand machines that boot at once cost a few
//! dozen generations and not a thousand.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use croft_proto::{CannotBoot, FarmName, Generation, ImageRef, ImageVersion, NodeName, edge};
use tokio::sync::{mpsc, oneshot};

use super::plan::Plan;
use super::state::{self, Impossible, Versions, Want};
use crate::boot::{Desk, Records, State};
use crate::desired::{ApplyError, Holder};
use crate::keeper::Keeper;
use crate::volume::{ImageStore, VolumeError};

/// Orders that go into one generation at most.
const BATCH: usize = 1024;

/// Why a machine does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrarError {
    #[error("image {name} is not in the image store; build it, or correct the blueprint")]
    NoImage { name: String },
    #[error(transparent)]
    CannotBoot(#[from] CannotBoot),
    #[error("the image store cannot be read")]
    Images(#[from] VolumeError),
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error("the desired state could not be kept")]
    Apply(#[from] ApplyError),
    #[error(
        "the state directory holds volumes and assignments of {kept}, and the file says site {site}; \
         put its name back, or give this bootd a state_dir of its own"
    )]
    OtherSite { kept: String, site: FarmName },
}

/// What a registrar works with.
#[derive(Debug)]
pub(crate) struct RegistrarParts {
    pub plan: Arc<ArcSwap<Plan>>,
    pub holder: Arc<Holder>,
    pub desk: Arc<Desk>,
    pub records: Arc<Records>,
    pub keeper: Arc<Keeper>,
    pub images: Arc<ImageStore>,
}

#[derive(Debug)]
enum Order {
    Assign(Want, oneshot::Sender<bool>),
    Withdraw(Vec<NodeName>, oneshot::Sender<bool>),
    Reload(Box<Plan>, oneshot::Sender<Result<(), RegistrarError>>),
    Follow,
    Stop,
}

/// Where orders are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registrar {
    orders: mpsc::Sender<Order>,
}

impl Registrar {
    /// A registrar, and the one who writes. `kept` is the state of an earlier run.
    pub(crate) fn new(parts: RegistrarParts, kept: edge::DesiredState) -> (Self, Writer) {
        let (sender, orders) = mpsc::channel(BATCH);
        (Self { orders: sender }, Writer { parts, state: kept, behind: false, orders })
    }

    /// Lets a machine serve; true once that is written down, false if it cannot.
    pub(crate) async fn assign(&self, want: Want) -> bool {
        let (done, result) = oneshot::channel();
        self.orders.send(Order::Assign(want, done)).await.is_ok() && result.await.unwrap_or(false)
    }

    /// Ends what these nodes do, and their access with it.
    pub(crate) async fn withdraw(&self, nodes: Vec<NodeName>) -> bool {
        let (done, result) = oneshot::channel();
        self.orders.send(Order::Withdraw(nodes, done)).await.is_ok()
            && result.await.unwrap_or(false)
    }

    /// Takes another file, whole or not at all. Windows that are shut are opened anew.
    ///
    /// # Errors
    /// It was not taken. None: bootd is stopping.
    pub(crate) async fn reload(&self, plan: Plan) -> Option<Result<(), RegistrarError>> {
        let (done, result) = oneshot::channel();
        self.orders.send(Order::Reload(Box::new(plan), done)).await.ok()?;
        result.await.ok()
    }

    /// Opens windows that could not be opened when their assignments were written down.
    pub(crate) async fn follow(&self) {
        // It has ended, and bootd with it, if this fails.
        let _ = self.orders.send(Order::Follow).await;
    }

    /// Ends the writer after what was handed in so far.
    pub(crate) async fn stop(&self) {
        // It has ended by itself if this fails.
        let _ = self.orders.send(Order::Stop).await;
    }
}

/// The one who writes.
#[derive(Debug)]
pub(crate) struct Writer {
    parts: RegistrarParts,
    /// As it was applied last.
    state: edge::DesiredState,
    /// Not all windows have followed it.
    behind: bool,
    orders: mpsc::Receiver<Order>,
}

impl Writer {
    /// Makes the state of an earlier run fit the file, and serves it.
    ///
    /// # Errors
    /// It is another site's, or could not be kept.
    pub(crate) fn begin(&mut self) -> Result<(), RegistrarError> {
        let plan = self.parts.plan.load_full();
        if let Some(kept) = state::foreign(&plan, &self.state) {
            return Err(RegistrarError::OtherSite { kept, site: plan.site.clone() });
        }
        let mut fitted = state::fit(&plan, self.state.clone());
        self.open_shut(&mut fitted);
        self.apply(&plan, fitted)
    }

    /// Writes until it is told to stop. Blocks: for a thread of its own.
    pub(crate) fn run(mut self) {
        let mut orders = Vec::new();
        while self.orders.blocking_recv_many(&mut orders, BATCH) > 0 {
            let plan = self.parts.plan.load_full();
            let mut next = self.state.clone();
            let (mut changed, mut waiting, mut reload, mut stop) = (false, Vec::new(), None, false);
            // An image name points to one version within a batch.
            let mut versions = BTreeMap::new();
            for order in orders.drain(..) {
                match order {
                    Order::Assign(want, done) => {
                        match self.assign(&plan, &mut next, &want, &mut versions) {
                            Ok(new) => {
                                changed |= new;
                                waiting.push(done);
                            }
                            Err(error) => {
                                let error = &error as &dyn std::error::Error;
                                tracing::warn!(node = %want.node, role = %want.role, error, "a machine cannot serve");
                                let _ = done.send(false);
                            }
                        }
                    }
                    Order::Withdraw(nodes, done) => {
                        for node in &nodes {
                            changed |= state::withdraw(&mut next, node);
                        }
                        waiting.push(done);
                    }
                    Order::Reload(plan, done) => reload = Some((plan, done)),
                    Order::Follow => {}
                    Order::Stop => stop = true,
                }
            }
            let applied = if changed {
                self.apply(&plan, next)
            } else {
                if self.behind {
                    self.follow();
                }
                Ok(())
            };
            if let Err(error) = &applied {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "assignments could not be kept");
            }
            for done in waiting {
                // Nobody waits for it any more: its client will ask again.
                let _ = done.send(applied.is_ok() && !self.behind);
            }
            if let Some((plan, done)) = reload {
                let _ = done.send(self.reload(*plan));
            }
            if stop {
                return;
            }
        }
    }

    fn reload(&mut self, plan: Plan) -> Result<(), RegistrarError> {
        let mut fitted = state::fit(&plan, self.state.clone());
        self.open_shut(&mut fitted);
        self.apply(&plan, fitted)?;
        self.parts.plan.store(Arc::new(plan));
        Ok(())
    }

    fn assign(
        &self,
        plan: &Plan,
        next: &mut edge::DesiredState,
        want: &Want,
        versions: &mut BTreeMap<String, ImageVersion>,
    ) -> Result<bool, RegistrarError> {
        let blueprint = plan.blueprints.get(&want.role).ok_or(Impossible::NoBlueprint)?;
        let mut resolve = |image: &ImageRef| self.resolve(image, versions);
        let persistent = blueprint.root.is_some_and(|root| root.persistent);
        let pinned = persistent.then(|| self.pinned(next, want)).flatten();
        let image = match (&blueprint.image, pinned) {
            (_, Some(pinned)) => Some(pinned),
            (Some(image), None) => Some(resolve(image)?),
            (None, None) => None,
        };
        if let Some(version) = image {
            self.parts.images.manifest(version)?.check_boot(blueprint.method)?;
        }
        let data = blueprint.data.iter().map(|data| data.resolve(&mut resolve));
        let data = data.collect::<Result<_, _>>()?;
        let window = self.next_window(&want.node);
        Ok(state::assign(plan, next, want, &Versions { image, data }, window)?)
    }

    /// What its persistent root was made from: also one that is there though the state that listed
    /// it was lost.
    fn pinned(&self, state: &edge::DesiredState, want: &Want) -> Option<ImageVersion> {
        let stored = || self.parts.keeper.image_of(&state::root_id(want, true).parse().ok()?);
        state::pinned(state, want).or_else(stored)
    }

    fn resolve(
        &self,
        image: &ImageRef,
        known: &mut BTreeMap<String, ImageVersion>,
    ) -> Result<ImageVersion, RegistrarError> {
        if let Some(version) = image.version {
            return Ok(version);
        }
        if let Some(version) = known.get(image.name.as_str()) {
            return Ok(*version);
        }
        let version = self.parts.images.current(&image.name)?;
        let version =
            version.ok_or_else(|| RegistrarError::NoImage { name: image.name.to_string() })?;
        known.insert(image.name.to_string(), version);
        Ok(version)
    }

    fn next_window(&self, node: &NodeName) -> u64 {
        self.parts.records.get(node).map_or(1, |boot| boot.window + 1)
    }

    /// Gives nodes whose window is shut, or was for something else, a new one.
    fn open_shut(&self, state: &mut edge::DesiredState) {
        for assignment in &mut state.assignments {
            let Ok(node) = assignment.node.parse::<NodeName>() else { continue };
            match self.parts.records.get(&node) {
                Some(boot) if matches!(boot.state, State::Shut | State::Revoked) => {
                    assignment.window = boot.window + 1;
                }
                _ => {}
            }
        }
    }

    /// Makes a state the next generation, remembers it, and opens the windows that it asks for.
    fn apply(&mut self, plan: &Plan, mut next: edge::DesiredState) -> Result<(), RegistrarError> {
        let held = self.parts.holder.now().generation;
        let generation = Generation { counter: held.counter + 1, ..held };
        next.generation = Some(generation.into());
        self.parts.holder.apply_with(&next, &state::legs(plan))?;
        self.state = next;
        self.follow();
        Ok(())
    }

    /// Lets windows follow the state that holds. What fails is tried again at the next order: the
    /// state is taken, there is no way back.
    fn follow(&mut self) {
        let followed = self.parts.desk.follow(&self.parts.holder.now());
        self.parts.keeper.zone();
        self.behind = followed.is_err();
        if let Err(error) = followed {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "not every boot window could follow; trying again");
        }
    }
}
