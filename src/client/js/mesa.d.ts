/** Version of this package. With `/client.js?v=VERSION` browsers cache the file for a year. */
export declare const version: string;

export interface MessageOptions {
  /** `false`: not stored for offline users. Only for messages of backends. */
  sync?: boolean;
}

/** A frame, as it is on the wire. */
export interface Frame<Data = any> {
  op: number;
  d: Data;
  t?: string;
  s?: number;
  o?: MessageOptions;
}

/** A message, as in the original. */
export declare class Message<Data = any> {
  constructor(opcode: number, data: Data, type?: string, options?: MessageOptions);
  /** 0, or an opcode of the application above 22. */
  opcode: number;
  data: Data;
  type?: string;
  /** With `resume`: the sequence in the user's log. Otherwise the position among redelivered messages, from 1. */
  sequence?: number;
  options?: MessageOptions;
  serialize(toJson?: false, config?: { sentByServer?: boolean }): string;
  serialize(toJson: true, config?: { sentByServer?: boolean }): Frame<Data>;
}

/** Sequences that are missing from the user's log, both ends included. */
export interface Gap {
  from: number;
  to: number;
  reason: 'expired' | 'quota' | 'cleared' | 'collapsed' | 'received' | 'restart' | 'lost';
}

export interface ConnectionOptions {
  /** True for the first connection of this object. */
  isInitialConnection: boolean;
  /** True for the first connection, and for the first one after `disconnect()`. */
  isInitialSessionConnection: boolean;
  /** True if the client has reconnected by itself. */
  isAutomaticReconnection: boolean;
}

export interface DisconnectionOptions {
  /** Whether the client reconnects. If false, this is the last event until `connect()`. */
  willAttemptReconnect: boolean;
}

/** Arguments of the listeners. A listener of `message` or `gap` may return a promise. */
export interface Events {
  connected: [options: ConnectionOptions];
  /** The same event by the name in the documentation of the original. */
  connection: [options: ConnectionOptions];
  message: [message: Message];
  /** With `resume`, in its place between the messages. */
  gap: [gap: Gap];
  disconnected: [code: number, reason: string, options: DisconnectionOptions];
  error: [error: Error];
}

/** Keeps the position in a user's log. Both methods may return promises. */
export interface PositionStore {
  /** Returns the saved position; nothing if there is none. */
  load(key: string): number | string | null | undefined | Promise<number | string | null | undefined>;
  /** Saves a position. The client acknowledges it afterwards. */
  save(key: string, position: number): void | Promise<void>;
}

export interface AuthenticationOptions {
  /** `false` discards the messages that are pending at the first connection. Default true. */
  shouldSync?: boolean;
  /** Name of the device, 1 to 64 characters. It has a cursor of its own in the user's log. */
  device?: string;
  /**
   * Resumes after the last handled message. `true` keeps the position in memory. A store keeps it over restarts of the
   * page or program.
   */
  resume?: boolean | PositionStore;
  /** User whose position this is. Default: `id` of the user object. Required if the server does not send one. */
  user?: string;
  /** Rejects the promise of this call. The client stays connected. */
  signal?: AbortSignal;
}

export type Token = string | object;

/** A WebSocket constructor, such as that of the package `ws`. */
export type WebSocketConstructor = new (url: string) => {
  readonly readyState: number;
  readonly bufferedAmount: number;
  send(data: string): void;
  close(code?: number, reason?: string): void;
};

export interface ClientOptions {
  /** Connects in the constructor. Default true. */
  autoConnect?: boolean;
  /** Default: the global one. */
  WebSocket?: WebSocketConstructor;
  /** Default: reconnects if the server says so, or if the client has a token, a function or `resume`. */
  reconnect?: boolean;
  /** Milliseconds within which the first attempt to reconnect is made. Default: that of the server, or 1000. */
  reconnectDelay?: number;
  /** Milliseconds within which any attempt is made. Default 30000. */
  reconnectDelayMax?: number;
  /** Milliseconds without a frame before the client probes the connection. Default: that of the server, or 25000. */
  heartbeatInterval?: number;
  /** Milliseconds that the client waits for an answer of the server. Default 10000. */
  timeout?: number;
  /** Messages that may wait to be sent. Default 1024. */
  queueMax?: number;
  /** Messages sent per second, averaged over 10 s. Default 50, half of the default of `limits.framesPerSecond`. */
  sendRate?: number;
  /** Version for a server with `client.enforceEqualVersions`. Default '1.5.3'. */
  version?: string;
  /** Disconnects the client. */
  signal?: AbortSignal;
}

export declare class Client<User = any> implements AsyncIterable<Message> {
  constructor(url: string, options?: ClientOptions);
  url: string;
  authenticated: boolean;
  /** The last 1000 frames sent and messages received, if the server has `options.storeMessages`. */
  messages: { sent: Message[]; received: Message[] };

  /** Callbacks, as in `mesa-js-client`. */
  onConnected?: (...args: Events['connected']) => unknown;
  onMessage?: (...args: Events['message']) => unknown;
  onGap?: (...args: Events['gap']) => unknown;
  onDisconnected?: (...args: Events['disconnected']) => unknown;
  onError?: (...args: Events['error']) => unknown;

  on<Name extends keyof Events>(event: Name, listener: (this: this, ...args: Events[Name]) => unknown): this;
  once<Name extends keyof Events>(event: Name, listener: (this: this, ...args: Events[Name]) => unknown): this;
  off<Name extends keyof Events>(event: Name, listener: (...args: any[]) => unknown): this;
  addListener<Name extends keyof Events>(event: Name, listener: (this: this, ...args: Events[Name]) => unknown): this;
  removeListener<Name extends keyof Events>(event: Name, listener: (...args: any[]) => unknown): this;
  removeAllListeners(event?: keyof Events): this;
  listenerCount(event: keyof Events): number;
  emit<Name extends keyof Events>(event: Name, ...args: Events[Name]): boolean;

  /** Connects. Rejects if the attempt fails and no other one follows. */
  connect(): Promise<void>;

  /**
   * Authenticates, and resolves with the user object.
   *
   * With an object, as in the original, the application authenticates after each connect. With a token, a function or
   * `resume` the client does so by itself. A function is called for each connection, and may return a promise. Its token
   * may be used for two connections, to learn its user and to resume.
   */
  authenticate(data: Token | (() => Token | Promise<Token>), options?: AuthenticationOptions): Promise<User>;

  /** Sends a message, or queues it while the client is offline. Throws if `queueMax` messages wait. */
  send(message: Message): number;
  send(opcode: number, data: unknown, type?: string): number;

  /** Resolves when no message waits to be sent. Rejects if the client ends before, or another user authenticates. */
  drained(): Promise<void>;

  /** Closes the connection. The client does not reconnect. */
  disconnect(code?: number, reason?: string): void;

  /** Iterates over messages. A message counts as handled when the loop asks for the next one. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Message>;
}

export default Client;

/** Keeps positions in `localStorage`. */
export declare function localStorageStore(prefix?: string): PositionStore;

/** Keeps positions in a database of IndexedDB. */
export declare function indexedDBStore(name?: string): PositionStore;

/** Keeps positions in a JSON file, for Node, Deno and Bun. One process may use a file. */
export declare function fileStore(path: string): PositionStore;
