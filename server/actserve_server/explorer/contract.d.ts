/**
 * What the page reads and writes of the contract (proto/actserve/v1), as protobuf's JSON has it: what is
 * zero, false or empty is left out, and whole numbers of 64 bits are texts. For the type checker alone.
 */

export interface Site {
  hookPoint?: string;
  layer?: number;
}

export interface Tensor {
  elementType?: string;
  shape?: number[];
  data?: string;
}

export interface Turn {
  role: string;
  content: string;
}

export interface Prompt {
  text?: string;
  conversation?: { turns: Turn[] };
}

export interface TokenizedPrompt {
  ids?: number[];
  texts?: string[];
  sources?: TokenSource[];
}

export interface TokenSource {
  turn?: number;
  role?: string;
  start?: number;
  end?: number;
}

export interface Model {
  name: string;
  path?: string;
  architecture?: string;
  layerCount?: number;
  width?: number;
  elementType?: string;
  hookPoints?: HookPointSupport[];
  limits?: Limits;
  attentionUnservedReason?: string;
  features?: string[];
}

export interface HookPointSupport {
  hookPoint: string;
  width?: number;
  unservedReason?: string;
  unchangeableReason?: string;
  heads?: number;
}

export interface Limits {
  maxSequenceTokens?: number;
  maxItems?: number;
  maxInterventions?: number;
  maxReadouts?: number;
}

export interface Nla {
  name: string;
  site?: Site;
  verbalizes?: boolean;
  reconstructs?: boolean;
  answersQuestions?: boolean;
  maxRows?: number;
}

export interface SteeringVector {
  name: string;
  rows?: SteeringVectorRow[];
  shape?: number[];
}

export interface SteeringVectorRow {
  site?: Site;
  norm?: number;
  medianRowNorm?: number;
  separation?: { heldOutAuroc?: number; halfCosine?: number };
}

export interface Status {
  code?: number;
  message?: string;
  details?: { "@type"?: string; reason?: string }[];
}

export interface Dictionary {
  name: string;
  site?: Site;
  features?: number;
  etag?: string;
}

export interface FeatureLabel {
  index?: number;
  label?: string;
}

export interface ActivationChunk {
  readoutIndex?: number;
  siteIndex?: number;
  positions?: number[];
  rows?: Tensor;
  indices?: number[];
}

export interface PredictionChunk {
  sequenceIndex?: number;
  siteIndex?: number;
  positions?: number[];
  topTexts?: string[];
  topLogprobs?: Tensor;
  tokenLogprobs?: Tensor;
  nextTokenLogprobs?: Tensor;
}

export interface AttentionChunk {
  head?: number;
  queries?: number[];
  weights?: Tensor;
}

export interface AttentionSummaryChunk {
  layer?: number;
  previousToken?: Tensor;
  currentToken?: Tensor;
  firstToken?: Tensor;
  induction?: Tensor;
  entropy?: Tensor;
  distance?: Tensor;
  topKeys?: number[];
  topKeyMeans?: Tensor;
}

export interface InterventionReport {
  rows?: string;
  changedRows?: string;
  reusedRows?: string;
  meanRelativeChange?: number;
  doseFactor?: number;
}

export interface FetchEvent {
  itemStarted?: { itemIndex?: number; prompt?: TokenizedPrompt };
  activations?: ActivationChunk;
  predictions?: PredictionChunk;
  attention?: AttentionChunk;
  attentionSummary?: AttentionSummaryChunk;
  itemFinished?: {
    itemIndex?: number;
    status?: Status;
    kept?: { name: string }[];
  };
}

export interface GenerateEvent {
  started?: { callId?: string; prompt?: TokenizedPrompt };
  tokens?: { position?: number; ids?: number[]; texts?: string[]; text?: string };
  alert?: Alert;
  sampleFinished?: {
    reason?: string;
    interventions?: InterventionReport[];
    monitorScores?: MonitorScore[];
    endTokenId?: number;
    monitor?: string;
  };
}

export interface MonitorScore {
  monitor: string;
  tokens?: number;
  score?: number;
  highestScore?: number;
  highestPosition?: number;
  level?: string;
  positions?: number[];
  tokenScores?: Tensor;
}

export interface ReplayEvent {
  item?: { status?: Status; scores?: MonitorScore[] };
}

export interface Monitor {
  name: string;
  probes?: { site?: Site }[];
  lower?: MonitorLevel;
  upper?: MonitorLevel;
  paused?: boolean;
  watch?: { namedOnly?: boolean; endUsers?: string[]; share?: number };
}

export interface MonitorLevel {
  threshold?: number;
  stop?: object;
  intervene?: object;
  pause?: object;
}

export interface Alert {
  name?: string;
  watchedCallId?: string;
  monitor?: string;
  level?: string;
  score?: number;
  position?: number;
  endUser?: string;
  raiseTime?: string;
  action?: string;
  decision?: string;
  decideByTime?: string;
  text?: string;
  explanation?: string;
}

export interface AlertEvent {
  started?: object;
  alert?: Alert;
  lost?: { alerts?: string };
}

export interface ExplainEvent {
  event?: {
    started?: { prompt?: TokenizedPrompt; positions?: number[]; site?: Site };
    partial?: { rowIndex?: number; text?: string };
    explanation?: Explanation;
  };
}

export interface Explanation {
  rowIndex?: number;
  text?: string;
  flags?: string[];
  norm?: number;
  position?: number;
  score?: { cosine?: number; varianceExplained?: number };
}
