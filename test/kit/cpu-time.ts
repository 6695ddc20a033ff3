/** What this process has computed so far, in ms: for limits that hold however busy the host is. */
export function cpuTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
