//! The numbers a frame begins with. Those from 1 to 22 belong to the protocol; a stock client hands any it does not
//! know to the application, so none of ours goes to one that has not asked for it.

/// Both ways: an application's message.
pub const DISPATCH: u64 = 0;
/// Server to client, which answers with [`HEARTBEAT_ACK`]; a client may send it too, and is answered.
pub const HEARTBEAT: u64 = 1;
/// Client to server: who it is.
pub const AUTHENTICATION: u64 = 2;
/// Client to server, from one that resumes: what its application has had so far.
pub const RECEIPT: u64 = 3;
/// Backend to server: an internal event. Never sent to a client.
pub const INTERNAL: u64 = 5;
/// Server to client: the first frame of every connection.
pub const HELLO: u64 = 10;
/// Client to server: the answer to [`HEARTBEAT`], in order.
pub const HEARTBEAT_ACK: u64 = 11;
/// Server to client, to one that resumes: what there is, and what is not there any more.
pub const RESUMED: u64 = 13;
/// Server to client: the client is who it said.
pub const AUTHENTICATED: u64 = 22;
