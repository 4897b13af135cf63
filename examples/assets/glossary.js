"use strict";

// What the words of a decision mean. Both pages hold a copy.
const GLOSSARY = new Map(Object.entries({
  "slow start": "the limit doubles for as long as a doubling pays",
  "light load": "the limit was not reached, and stays",
  headroom: "the limit follows the requests at work, upwards",
  queueing: "the limit follows the requests at work, downwards",
  probe: "the limit is lowered for some windows, to see what its last part is worth",
  "probe upwards": "the limit is raised for some windows, to see whether all that comes fits or more pays",
  knee: "the limit beyond which more requests inside are not served sooner",
  confirm: "the limit goes back up, to see whether the throughput comes back",
  "not our queue": "a dependency is slower, and a lower limit would not help",
  "capacity lost": "the throughput did not come back with the limit",
  "no evidence": "a probe showed nothing",
  "not our deaths": "with an eighth of the limit as many requests were given up, so it is restored",
  deaths: "requests are given up inside, so the limit is halved at least",
  drains: "what a higher limit let in has to leave first",
  stall: "the process itself paused",
  "service time": "from admission to the end of the response",
  baseline: "the service time without a queue of ours",
  elasticity: "by which part throughput rises with the limit: 1, each request more is served; 0, it only queues",
  saturated: "checkouts wait for connections",
  arrivals: "checkouts asked for",
  returns: "connections given back",
  wait: "how long checkouts wait for a connection, on average",
  base: "how long connections are held when nothing waits",
  demand: "connections that the arrivals need, by Little's law",
}));
const TERMS = new RegExp(`\\b(${[...GLOSSARY.keys()].sort((a, b) => b.length - a.length).join("|")})\\b`, "g");

const explained = (text) => text.split(TERMS).map((part) =>
  (GLOSSARY.has(part) ? html("abbr", { title: GLOSSARY.get(part) }, part) : part));
