//! The other servers, over the Redis that they share.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    super::{
        Cluster, Hears, Keeps, Word,
        portals::{FarPortals, NearPortals},
    },
    Link, LinkError, Told,
    portals::Portals,
    presence::{self, Presence},
    stock, words,
};
use crate::message::{Payload, Recipients, UserId};

/// Words that wait to be told. What is said beyond that is lost: it is worth something now or not at all.
const WORDS_MAX: usize = 4096;

/// Words told in one go.
const TOLD_MAX: usize = 64;

/// Messages from stock that wait to be kept. What comes beyond that is lost, as with stock, and the log says so.
const FROM_STOCK_MAX: usize = 8192;

/// A message from stock, and users of ours.
type FromStock = (Payload, Vec<UserId>);

/// What stock sends to who is to go.
const LEAVE: &[u8] = br#"{"op":5,"d":{},"t":"DISCONNECT_CLIENT"}"#;

/// The other servers.
#[derive(Debug)]
pub struct Servers {
    link: Arc<Link>,
    presence: Arc<Presence>,
    words: mpsc::Sender<Word>,
    from_stock: mpsc::Sender<FromStock>,
    /// Until somebody keeps them.
    waiting: Mutex<Option<mpsc::Receiver<FromStock>>>,
}

impl Servers {
    /// Begins to tell them who is here.
    #[must_use]
    pub fn new(link: Arc<Link>) -> Arc<Self> {
        let (words, mut waiting) = mpsc::channel(WORDS_MAX);
        let presence = Presence::begin(&link);
        let beside = presence.clone();
        link.keep(|link| async move {
            let mut some = Vec::with_capacity(TOLD_MAX);
            while waiting.recv_many(&mut some, TOLD_MAX).await > 0 {
                let Some(link) = link.upgrade() else { return };
                let channel = link.names().past();
                let beside = beside.is_beside_stock();
                let tell = async |word| {
                    if beside {
                        let (message, recipients, excluding) = match &word {
                            Word::Message { payload, recipients, excluding } => {
                                (&payload.as_bytes()[..], recipients, excluding)
                            }
                            Word::Leave { recipients, excluding } => (LEAVE, recipients, excluding),
                        };
                        let recipients = without(&link, recipients, excluding).await?;
                        stock::publish(&link, message, &recipients).await?;
                    }
                    let mut command = redis::cmd("PUBLISH");
                    command.arg(&channel).arg(words::encode(link.node(), &word));
                    link.lines().ask::<redis::Value>(&command).await
                };
                // They share a line, which keeps their order.
                let told = futures_util::future::join_all(some.drain(..).map(tell)).await;
                if let Some(Err(error)) = told.into_iter().find(Result::is_err) {
                    tracing::warn!(%error, "other servers were not told something that is not kept");
                }
            }
        });
        let (from_stock, waiting) = mpsc::channel(FROM_STOCK_MAX);
        Arc::new(Self { presence, link, words, from_stock, waiting: Mutex::new(Some(waiting)) })
    }
}

/// Stock knows nobody who is excluded: where somebody is, all others are named.
async fn without(link: &Link, recipients: &Recipients, excluding: &[UserId]) -> Result<Recipients, LinkError> {
    match recipients {
        Recipients::Everyone if excluding.is_empty() => Ok(Recipients::Everyone),
        Recipients::Everyone => {
            let connected = link.names().stock("connected_clients");
            let all: Vec<String> = link.lines().ask(redis::cmd("SMEMBERS").arg(connected)).await?;
            let all = all.iter().filter_map(|user| UserId::new(user).ok());
            Ok(Recipients::Users(all.filter(|user| !excluding.contains(user)).collect()))
        }
        Recipients::Users(users) => {
            Ok(Recipients::Users(users.iter().filter(|user| !excluding.contains(user)).cloned().collect()))
        }
    }
}

/// Keeps what stock says to users who are here, unless another server of ours that has them too does.
async fn keep_from_stock(link: Weak<Link>, mut waiting: mpsc::Receiver<FromStock>, keeps: Keeps) {
    let mut some = Vec::with_capacity(TOLD_MAX);
    while waiting.recv_many(&mut some, TOLD_MAX).await > 0 {
        let Some(link) = link.upgrade() else { return };
        let mut kept = Vec::with_capacity(some.len());
        for (payload, users) in some.drain(..) {
            // Where that cannot be found out they are kept twice rather than not.
            let before = presence::elsewhere(&link, &users).await.unwrap_or_else(|_| vec![(0, false); users.len()]);
            let ours = users.into_iter().zip(before).filter(|(_, (_, before))| !before).map(|(user, _)| user);
            kept.push((payload, ours.collect::<Vec<_>>()));
        }
        kept.retain(|(_, users)| !users.is_empty());
        keeps(kept).await;
    }
}

impl Cluster for Servers {
    fn here(&self, user: &UserId, connections: usize) {
        self.presence.here(user, connections);
    }

    fn count(&self, connections: usize) {
        self.presence.count(connections);
    }

    fn elsewhere<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<usize>>> {
        let (link, users) = (self.link.clone(), users.to_vec());
        let asking = async move { presence::elsewhere(&link, &users).await };
        Box::pin(async move {
            let found = self.link.run(asking).await.ok()?;
            Some(found.into_iter().map(|(count, _)| count).collect())
        })
    }

    fn all_elsewhere(&self) -> BoxFuture<'_, usize> {
        let link = self.link.clone();
        let asking = async move { presence::all_elsewhere(&link).await };
        Box::pin(async move { self.link.run(asking).await.unwrap_or(0) })
    }

    fn beside<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<bool>>> {
        if !self.presence.is_beside_stock() {
            return Box::pin(std::future::ready(None));
        }
        let (link, users) = (self.link.clone(), users.to_vec());
        let asking = async move { stock::connected(&link, &users).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn tell_beside<'a>(&'a self, payload: &'a Payload, users: &'a [UserId]) -> BoxFuture<'a, bool> {
        let (link, payload, users) = (self.link.clone(), payload.clone(), Recipients::Users(users.to_vec()));
        let telling = async move { stock::publish(&link, payload.as_bytes(), &users).await };
        Box::pin(async move { self.link.run(telling).await.is_ok() })
    }

    fn online<'a>(&'a self, after: Option<&'a UserId>, limit: usize) -> BoxFuture<'a, Option<Vec<UserId>>> {
        let (link, after) = (self.link.clone(), after.cloned());
        let asking = async move { presence::online(&link, after.as_ref(), limit).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn everybody(&self) -> BoxFuture<'_, Option<Vec<UserId>>> {
        let link = self.link.clone();
        let asking = async move { stock::everybody(&link).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn everybody_count(&self) -> BoxFuture<'_, Option<usize>> {
        let link = self.link.clone();
        let asking = async move { stock::everybody_count(&link).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn has<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Option<bool>> {
        let (link, users) = (self.link.clone(), [user.clone()]);
        let asking = async move { stock::connected(&link, &users).await };
        Box::pin(async move { self.link.run(asking).await.ok()?.first().copied() })
    }

    fn connections(&self) -> BoxFuture<'_, Option<usize>> {
        let link = self.link.clone();
        let asking = async move { stock::connections(&link).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn portals(&self, near: Weak<dyn NearPortals>) -> Arc<dyn FarPortals> {
        Portals::begin(&self.link, near)
    }

    fn tell(&self, word: Word) {
        if self.words.try_send(word).is_err() {
            tracing::warn!("too much waits to be told to other servers: something that is not kept is lost");
        }
    }

    fn hear(&self, hears: Hears, keeps: Keeps) {
        if let Some(waiting) = self.waiting.lock().take() {
            self.link.keep(|link| keep_from_stock(link, waiting, keeps));
        }
        let (past, own) = (self.link.names().past(), self.link.node().to_owned());
        let (stock, presence, from_stock) =
            (self.link.names().stock("ws"), self.presence.clone(), self.from_stock.clone());
        self.link.listen(Arc::new(move |told| {
            let Told::Said { channel, payload } = told else { return };
            if *channel == past {
                if let Some(word) = words::decode(payload, &own) {
                    hears(word);
                }
            } else if *channel == stock {
                match stock::read(payload) {
                    Some(stock::Said::Message { payload, recipients: Recipients::Users(users), sync: true }) => {
                        let users = presence.of_here(users);
                        if !users.is_empty() && from_stock.try_send((payload, users)).is_err() {
                            tracing::warn!("stock says more than can be kept: a message of its is lost");
                        }
                    }
                    Some(stock::Said::Message { payload, recipients, .. }) => {
                        hears(Word::Message { payload, recipients, excluding: Vec::new() });
                    }
                    Some(stock::Said::Leave(recipients)) => {
                        hears(Word::Leave { recipients, excluding: Vec::new() });
                    }
                    None => {}
                }
            }
        }));
    }
}
