// The WebSocket server of Bun, for the benchmark.
const args = process.argv.slice(2);
const value = (name) => (args.includes(name) ? args[args.indexOf(name) + 1] : undefined);
const everybody = args.includes('-broadcast');
const tls = value('-cert') && { cert: Bun.file(value('-cert')), key: Bun.file(value('-key')) };

const server = Bun.serve({
	port: 0,
	hostname: '127.0.0.1',
	tls,
	fetch(request, server) {
		if (!server.upgrade(request)) return new Response('', { status: 426 });
	},
	websocket: {
		maxPayloadLength: 2 << 20,
		perMessageDeflate: args.includes('-pack'),
		open(ws) {
			if (everybody) ws.subscribe('all');
		},
		message(ws, message) {
			if (everybody) server.publish('all', message);
			else ws.send(message);
		},
	},
});
console.log(server.port);
process.stdin.on('data', (chunk) => {
	for (const line of String(chunk).trim().split('\n')) {
		if (line === 'gc') Bun.gc(true);
		console.log('{"Unsupported":true}');
	}
});
process.stdin.on('end', () => process.exit());
